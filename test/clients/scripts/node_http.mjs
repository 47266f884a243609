import http from 'node:http';
import https from 'node:https';

const url = process.argv[2];
(url.startsWith('https:') ? https : http).get(url, (r) => {
  console.log(r.statusCode, r.statusMessage);
  r.pipe(process.stdout);
});
