import { EnvHttpProxyAgent, request } from 'undici';

const r = await request(process.argv[2], { dispatcher: new EnvHttpProxyAgent() });
console.log(r.statusCode);
console.log(await r.body.text());
