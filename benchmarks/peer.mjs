// The servers that benchmarks/comparable_servers.py measures, as one process: `node peer.mjs FOLDER KIND REDIS_URL`.
// Reads `{"port": number, "jkts": [thumbprint, …]}` from standard input, and prints one line of JSON: a
// token bound to each key. KIND: `oidc-dpop` and `oidc-introspection` are node-oidc-provider with its memory adapter;
// `jose` is what one writes by hand, with spent proofs in Redis.

import { createHash, randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [, , folder, kind, redisUrl] = process.argv;
const { port, jkts } = JSON.parse(readFileSync(0, "utf8"));
const resolve = createRequire(`${folder}/package.json`).resolve;
const load = (name) => import(pathToFileURL(resolve(name)));
const url = `http://127.0.0.1:${port}`;
const SECONDS = 900;

async function oidc() {
  const { default: Provider } = await load("oidc-provider");
  const provider = new Provider(url, {
    clients: [
      { client_id: "client", client_secret: "secret", redirect_uris: [], response_types: [],
        grant_types: ["client_credentials"] },
    ],
    features: {
      dPoP: { enabled: true },
      introspection: { enabled: true },
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
    },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    ttl: { AccessToken: SECONDS, Grant: SECONDS },
  });
  const client = await provider.Client.find("client");
  const tokens = [];
  for (const jkt of jkts) {
    const grant = new provider.Grant({ accountId: randomUUID(), clientId: "client" });
    grant.addOIDCScope("openid");
    const grantId = await grant.save();
    const token = new provider.AccessToken({
      accountId: grant.accountId, client, grantId, scope: "openid", gty: "authorization_code",
    });
    token.jkt = jkt;
    tokens.push(await token.save());
  }
  return { answer: provider.callback(), tokens };
}

async function byHand() {
  const jose = await load("jose");
  const { createClient } = await load("redis");
  const redis = await createClient({ url: redisUrl }).connect();
  const { publicKey, privateKey } = await jose.generateKeyPair("EdDSA");
  const tokens = await Promise.all(jkts.map((jkt) =>
    new jose.SignJWT({ cnf: { jkt } }).setProtectedHeader({ alg: "EdDSA", typ: "at+jwt" }).setIssuer(url)
      .setAudience(url).setIssuedAt().setExpirationTime(`${SECONDS}s`).sign(privateKey)));
  const judge = async (request) => {
    const compact = request.headers.authorization.slice("DPoP ".length);
    const token = await jose.jwtVerify(compact, publicKey, { issuer: url, audience: url, typ: "at+jwt" });
    const { payload, protectedHeader } = await jose.jwtVerify(request.headers.dpop, jose.EmbeddedJWK, {
      algorithms: ["EdDSA", "ES256"], typ: "dpop+jwt", maxTokenAge: 300,
    });
    const jkt = await jose.calculateJwkThumbprint(protectedHeader.jwk);
    const ath = createHash("sha256").update(compact).digest("base64url");
    const fits = jkt === token.payload.cnf.jkt && payload.ath === ath &&
      payload.htm === request.method && payload.htu === url + request.url;
    return fits && (await redis.set(`${jkt} ${payload.jti}`, 1, { NX: true, EX: 600 })) === "OK";
  };
  const answer = async (request, response) => {
    const valid = await judge(request).catch(() => false);
    response.writeHead(valid ? 200 : 401, { "Content-Type": "application/json" }).end(JSON.stringify({ valid }));
  };
  return { answer, tokens };
}

const { answer, tokens } = await (kind === "jose" ? byHand() : oidc());
createServer(answer).listen(port, "127.0.0.1", () => console.log(JSON.stringify({ tokens })));
