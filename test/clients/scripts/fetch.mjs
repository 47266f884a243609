const url = process.argv[2];
const r = await fetch(url);
console.log(r.status, r.statusText);
console.log(await r.text());
