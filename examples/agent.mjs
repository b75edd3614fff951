#!/usr/bin/env node
// An agent, and for show its service provider, in one file without dependencies, after docs/protocol.md: (§n) names its sections.
//
//   node examples/agent.mjs [--registry http://localhost:8000] [--service-provider demo-service]
//        [--client-id ID --client-secret-file FILE]            play the service provider too: ask verify
//   node examples/agent.mjs --example [docs/example.md]        make the bytes of the worked example and compare
//
// Each step is one JSON line on stdout. Exit code 0: every step went as it should.

import { existsSync } from "node:fs";
import { readFile, rename, writeFile } from "node:fs/promises";
import { setTimeout as pause } from "node:timers/promises";
import { parseArgs } from "node:util";

const { subtle } = globalThis.crypto;
const ALGORITHMS = { EdDSA: { name: "Ed25519" }, ES256: { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } };
const utf8 = (text) => Buffer.from(text, "utf8");
const base64url = (bytes) => Buffer.from(bytes).toString("base64url");
const sha256 = async (bytes) => Buffer.from(await subtle.digest("SHA-256", bytes));
const now = () => Math.floor(Date.now() / 1000);
const digest = async (text, form = "base64url") => (await sha256(utf8(text))).toString(form);
const say = (step, facts) => console.log(JSON.stringify({ step, ...facts }));

class Refused extends Error {
  constructor(facts) {
    super(facts.error_description ?? facts.error);
    this.facts = facts;
  }
}

function demand(condition, complaint) {
  if (!condition) throw new Refused({ error: "not_accepted", error_description: complaint });
}

/** RFC 8785 for what occurs here: objects, lists, strings, booleans, null and whole numbers. */
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const members = Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`);
  return `{${members.join(",")}}`;
}

// ---- keys and signatures (§1) ----

const publicPart = ({ kty, crv, x, y }) => (kty === "EC" ? { kty, crv, x, y } : { kty, crv, x });

async function signingKey(jwk) {
  const alg = jwk.kty === "OKP" ? "EdDSA" : "ES256";
  const secret = await subtle.importKey("jwk", { ...publicPart(jwk), d: jwk.d }, ALGORITHMS[alg], false, ["sign"]);
  return { alg, jwk: publicPart(jwk), jkt: await digest(canonical(publicPart(jwk))), secret };
}

async function newJwk(alg) {
  const { privateKey } = await subtle.generateKey(ALGORITHMS[alg], true, ["sign", "verify"]);
  const jwk = await subtle.exportKey("jwk", privateKey);
  return { ...publicPart(jwk), d: jwk.d };
}

/** The key in `file`; a new one, kept there if a file is named, if there is none. */
async function keyIn(file, alg) {
  if (file && existsSync(file)) return signingKey(JSON.parse(await readFile(file, "utf8")));
  const jwk = await newJwk(alg);
  if (file) await writeFile(file, JSON.stringify(jwk), { mode: 0o600, flag: "wx" });
  return signingKey(jwk);
}

async function compact(key, header, payload) {
  const input = [{ alg: key.alg, ...header }, payload].map((part) => base64url(utf8(canonical(part)))).join(".");
  return `${input}.${base64url(await subtle.sign(ALGORITHMS[key.alg], key.secret, utf8(input)))}`;
}

const signed = (key, typ, payload) => compact(key, { typ, jwk: key.jwk }, payload);
const part = (jws, index) => JSON.parse(Buffer.from(jws.split(".")[index], "base64url").toString("utf8"));

async function verifies(jws, jwk) {
  const alg = jwk.kty === "OKP" ? "EdDSA" : "ES256";
  const key = await subtle.importKey("jwk", publicPart(jwk), ALGORITHMS[alg], false, ["verify"]);
  const [header, payload, signature] = jws.split(".");
  return subtle.verify(ALGORITHMS[alg], key, Buffer.from(signature, "base64url"), utf8(`${header}.${payload}`));
}

// ---- proofs and URLs (§2) ----

/** A proof for one request: `body` is its bytes and belongs to the registry's own API, `token` to a service provider's. */
async function proof(key, method, url, { body, token, nonce, iat = now(), jti = crypto.randomUUID() }) {
  const claims = { jti, htm: method, htu: url.replace(/[?#].*$/, ""), iat };
  if (body !== undefined) claims.bh = await digest(body);
  if (token !== undefined) claims.ath = await digest(token);
  if (nonce !== undefined) claims.nonce = nonce;
  return signed(key, "dpop+jwt", claims);
}

/** The normal form of `url`, without query. */
function normal(url) {
  const parts = /^(https?):\/\/([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]+))?(\/[!-~]*)?$/i.exec(url.replace(/[?#].*$/, ""));
  demand(parts && url.length <= 2048 && !/\\|%(?![0-9a-f]{2})/i.test(url), `not a URL to sign for: ${url}`);
  const [scheme, host, port, path = "/"] = [parts[1].toLowerCase(), parts[2].toLowerCase(), parts[3], parts[4]];
  demand(!/\/(\.|%2e){1,2}(\/|$)/i.test(path), `dot segments in ${url}`);
  const standard = { http: "80", https: "443" }[scheme];
  return `${scheme}://${host}${port && port !== standard ? `:${port}` : ""}${path.replace(/%../g, (hex) => hex.toUpperCase())}`;
}

function lies(url, audience) {
  const [inner, outer] = [normal(url), normal(audience).replace(/\/$/, "")];
  return inner === outer || inner.startsWith(`${outer}/`);
}

// ---- requests to the registry (§0, §2) ----

class Registry {
  constructor(url, key) {
    Object.assign(this, { issuer: url, key, nonce: undefined });
  }

  /** One request. `json` or `form` is its body; `basic` authenticates a service provider, a proof the agent; neither: `open`. */
  async once(method, path, { json, form, query = "", basic, open, idempotencyKey } = {}) {
    const body = json ? JSON.stringify(json) : form && String(new URLSearchParams(form));
    const headers = { Accept: "application/json" };
    if (body) headers["Content-Type"] = json ? "application/json" : "application/x-www-form-urlencoded";
    if (idempotencyKey) headers["Idempotency-Key"] = idempotencyKey;
    if (basic) headers.Authorization = `Basic ${Buffer.from(basic).toString("base64")}`;
    else if (!open) headers.DPoP = await proof(this.key, method, this.issuer + path, { body, nonce: this.nonce });
    const options = { method, headers, body, redirect: "manual", signal: AbortSignal.timeout(60_000) };
    const response = await fetch(this.issuer + path + query, options);
    demand(response.status < 300 || response.status >= 400, `a redirect from ${path}`);
    if (!basic) this.nonce = response.headers.get("DPoP-Nonce") ?? this.nonce;
    const text = await response.text();
    const answer = /^application\/json\b/.test(response.headers.get("Content-Type")) && text ? JSON.parse(text) : {};
    const facts = { ...answer, path, status: response.status, request_id: response.headers.get("X-Request-Id") };
    return { status: response.status, answer, facts, wait: Number(response.headers.get("Retry-After") ?? 1) };
  }

  /** The answer of a request that is tried again as its refusals allow: same body, same Idempotency-Key, a new proof of the agent's. */
  async ask(method, path, details = {}) {
    const idempotencyKey = method === "GET" || details.form ? undefined : crypto.randomUUID();
    for (let tries = 1; ; tries += 1) {
      const result = await this.once(method, path, { ...details, idempotencyKey }).catch(unreachable);
      if (result.status < 300) return result.answer;
      const again = result.status === 503 || ["use_dpop_nonce", "idempotency_in_progress"].includes(result.answer.error);
      if (!again || tries === 5) throw new Refused(result.facts ?? result.answer);
      if (result.answer.error !== "use_dpop_nonce") await pause(Math.min(result.wait, 60) * 1000);
    }
  }
}

function unreachable(fault) {
  if (fault instanceof Refused) throw fault;
  return { status: 503, answer: { error: "unreachable", error_description: String(fault.cause ?? fault) }, wait: 1 };
}

// ---- the agent (§4 to §7) ----

async function discover(registry) {
  const found = await registry.ask("GET", "/.well-known/agentauth", { open: true });
  demand(found.version === 1 && found.issuer === registry.issuer, `not version 1 of ${registry.issuer}`);
  demand(found.algorithms.includes(registry.key.alg), `${registry.key.alg} is not among ${found.algorithms}`);
}

function manifestOf({ key, issuer }, options, iat = now()) {
  const { name, "model-origin": model_origin, capabilities } = options;
  const claims = { aud: issuer, iat, exp: iat + 90 * 86400, jti: crypto.randomUUID(), name, model_origin, capabilities };
  return signed(key, "agent-manifest+jwt", claims);
}

/** The same said again, with a later `iat` and a longer life. */
async function renew(registry, options) {
  const json = { manifest: await manifestOf(registry, options, now() + 1) };
  say("renewed", await registry.ask("POST", "/v1/agents/me/manifest", { json }));
}

/** The registry with the agent's next key, which is stored before the registry hears of it: an answer may be lost. */
async function rotated(registry, agent_id, options) {
  demand(options.key, "a key is only changed where it is kept: --key");
  const next = await keyIn(`${options.key}.next`, registry.key.alg);
  const claims = { aud: registry.issuer, iat: now(), jti: crypto.randomUUID(), agent_id, old_jkt: registry.key.jkt };
  const json = { new_key: await signed(next, "agent-key+jwt", claims) };
  await registry.ask("POST", "/v1/agents/me/key", { json }).catch((refusal) => {
    if (!["invalid_client", "unreachable"].includes(refusal.facts?.error)) throw refusal;
  });
  const changed = await settled(registry, options);
  demand(changed.key.jkt === next.jkt, "the key was not changed");
  say("rotated", { jkt: next.jkt, former: (await registry.once("GET", "/v1/agents/me")).answer.error });
  return changed;
}

/** The registry with the key that is good there, where a change of key was begun. */
async function settled(registry, { key }) {
  if (!key || !existsSync(`${key}.next`)) return registry;
  const changed = new Registry(registry.issuer, await keyIn(`${key}.next`));
  if ((await changed.once("GET", "/v1/agents/me")).status !== 200) return registry;
  await rename(`${key}.next`, key);
  return changed;
}

/** What the registry says of a service provider, if its audience is one that an agent may sign for. */
async function lookUp(registry, name) {
  const found = await registry.ask("GET", `/v1/service-providers/${encodeURIComponent(name)}`);
  const { origin, protocol, hostname } = new URL(found.audience);
  demand([found.id, found.slug].includes(name), `asked for ${name}, told of ${found.slug}`);
  demand(normal(found.audience).replace(/\/$/, "") === found.audience, `${found.audience} is no audience`);
  demand(protocol === "https:" || ["127.0.0.1", "localhost"].includes(hostname), `${found.audience} is not https`);
  demand(origin !== new URL(registry.issuer).origin, `${found.audience} is the registry itself`);
  return found;
}

/** The grant once it is decided: long polls, no two begun within the interval. */
async function decided(registry, { grant_id }) {
  for (;;) {
    const begun = Date.now();
    const grant = await registry.ask("GET", `/v1/grants/${grant_id}`, { query: "?wait=30" }).catch((refusal) => {
      if (refusal.facts?.error !== "slow_down") throw refusal;
      return { status: "pending", interval: refusal.facts.interval };
    });
    if (grant.status !== "pending") return grant;
    await pause(Math.max(0, begun + grant.interval * 1000 - Date.now()));
  }
}

async function tokenFor(registry, grant_id, provider) {
  const answer = await registry.ask("POST", "/v1/tokens", { json: { grant_id } });
  const { iss, aud, cnf } = part(answer.access_token, 1);
  demand(answer.token_type === "DPoP" && part(answer.access_token, 0).typ === "at+jwt", "not a token bound to a key");
  demand(iss === registry.issuer && aud === provider.audience, `a token of ${iss} for ${aud}`);
  demand(cnf.jkt === registry.key.jkt, "a token for another key");
  return answer;
}

/** The headers of one call at a service provider: created for each try, with the last nonce it gave. */
async function headersFor(key, provider, token, method, url, idempotencyKey) {
  demand(lies(url, provider.audience), `${url} is not under ${provider.audience}`);
  const DPoP = await proof(key, method, url, { token, nonce: provider.nonce });
  return { Authorization: `DPoP ${token}`, DPoP, "Idempotency-Key": idempotencyKey };
}

// ---- the service provider (§8) ----

/** The decision about one call of the agent, which signs a new one, once, if verify asks for a nonce. */
async function decisionFor(registry, basic, call, action, last = false) {
  const headers = await headersFor(registry.key, call.provider, call.token, "POST", call.url, call.name);
  const token = headers.Authorization.replace(/^DPoP /, "");
  const json = { token, proof: headers.DPoP, method: "POST", url: call.url, action, idempotency_key: headers["Idempotency-Key"] };
  const decision = await registry.ask("POST", "/v1/verify", { json, basic });
  call.provider.nonce = decision.nonce ?? call.provider.nonce; // the header DPoP-Nonce of a real one's answer
  return decision.error === "use_dpop_nonce" && !last ? decisionFor(registry, basic, call, action, true) : decision;
}

/** A granted capability as an action at its very limit. Constraints are for the caller to satisfy: --action. */
function actionOf({ type, resource, namespace, name, max_amount }) {
  return { type, resource, namespace, name, amount: max_amount };
}

async function provide(registry, options, provider, url, grant, token) {
  const secret = (await readFile(options["client-secret-file"], "utf8")).trim();
  const basic = `${options["client-id"]}:${secret}`;
  const action = options.action ?? actionOf(grant.granted.capabilities[0]);
  const outside = { ...action, resource: "not-granted" };
  const call = (name = crypto.randomUUID()) => ({ provider, token, url, name });
  const expect = async (step, decision, valid) => {
    say(step, decision);
    demand(decision.valid === valid, `${step} was not to be ${decision.valid}`);
  };
  const introspect = async () => say("introspected", await registry.ask("POST", "/v1/introspect", { form: { token }, basic }));
  await introspect();
  await expect("allowed", await decisionFor(registry, basic, call(), action), true);
  await expect("denied", await decisionFor(registry, basic, call(), outside), false);
  await registry.ask("POST", "/v1/revoke", { form: { token } });
  say("revoked", { token_jti: part(token, 1).jti });
  await introspect();
  await expect("refused", await decisionFor(registry, basic, call(), action), false);
}

async function run(options) {
  let registry = new Registry(options.registry.replace(/\/$/, ""), await keyIn(options.key, options.alg));
  demand(/^(https:\/\/|http:\/\/(localhost|127\.0\.0\.1)(:|$))/.test(registry.issuer), `${registry.issuer} is not https`);
  await discover(registry);
  registry = await settled(registry, options);
  say("key", { alg: registry.key.alg, jkt: registry.key.jkt });
  const json = { manifest: await manifestOf(registry, options), enrolment_code: options["enrolment-code"] };
  const agent = await registry.ask("POST", "/v1/agents", { json });
  say("registered", agent);
  if (agent.status === "expired") await renew(registry, options);
  const provider = await lookUp(registry, options["service-provider"]);
  say("service_provider", provider);
  const url = options.url ?? `${provider.audience}/`;
  demand(lies(url, provider.audience), `${url} is not under ${provider.audience}`);
  const request = { service_provider: provider.id, capabilities: options.capabilities };
  const asked = await registry.ask("POST", "/v1/grants", { json: request });
  say("requested", asked);
  const grant = await decided(registry, asked);
  say("decided", { grant_id: grant.grant_id, status: grant.status, granted: grant.granted, narrowed: grant.narrowed });
  demand(grant.status === "approved" && grant.service_provider.audience === provider.audience, `grant ${grant.status}`);
  if (options.renew) await renew(registry, options);
  if (options.rotate) registry = await rotated(registry, agent.agent_id, options);
  const { access_token: token, expires_in } = await tokenFor(registry, grant.grant_id, provider);
  say("token", { expires_in, scope: part(token, 1).scope });
  if (options["client-id"]) await provide(registry, options, provider, url, grant, token);
  else say("call", { method: "POST", url, headers: await headersFor(registry.key, provider, token, "POST", url, crypto.randomUUID()) });
}

// ---- the worked example (docs/example.md) ----

const hex = (text) => Buffer.from(text, "hex");
const PKCS8 = { EdDSA: "302e020100300506032b657004220420", ES256: "3041020100301306072a8648ce3d020106082a8648ce3d030107042730250201010420" };

async function namedKey(name, alg) {
  const der = Buffer.concat([hex(PKCS8[alg]), await sha256(utf8(`agentauth test vector: ${name}`))]);
  return signingKey(await subtle.exportKey("jwk", await subtle.importKey("pkcs8", der, ALGORITHMS[alg], true, ["sign"])));
}

/** r ‖ s of a signature in DER. */
function rawSignature(der) {
  const r = der.subarray(4, 4 + der[3]);
  const s = der.subarray(6 + der[3]);
  return Buffer.concat([r, s].map((n) => Buffer.concat([Buffer.alloc(32), n]).subarray(-32)));
}

const tagged = (statement) => `agentauth/${statement.kind}/v1\0${canonical(statement)}`;

/** What a receipt's statement, text and passkey signature prove (§6), with nothing but trusted keys and the issuer. */
async function receiptHolds(receipt, { keys }, issuer) {
  const { typ, kid } = part(receipt, 0);
  const claims = part(receipt, 1);
  const { statement } = claims;
  const bytes = (name) => Buffer.from(claims[name], "base64url");
  const names = "authenticator_data client_data_json consent_text credential_id credential_public_key human_id signature statement";
  const client = JSON.parse(bytes("client_data_json"));
  const data = bytes("authenticator_data");
  const cose = bytes("credential_public_key");
  const jwk = { kty: "EC", crv: "P-256", x: base64url(cose.subarray(10, 42)), y: base64url(cose.subarray(45, 77)) };
  const passkey = await subtle.importKey("jwk", jwk, ALGORITHMS.ES256, false, ["verify"]);
  const message = Buffer.concat([data, await sha256(bytes("client_data_json"))]);
  return [
    typ === "approval-receipt+jwt" && (await verifies(receipt, keys.find((key) => key.kid === kid))),
    Object.keys(claims).sort().join(" ") === names,
    statement.issuer === issuer && claims.human_id === statement.human_id,
    (await digest(claims.consent_text, "hex")) === statement.consent_sha256,
    client.type === "webauthn.get" && client.origin === issuer && client.challenge === (await digest(tagged(statement))),
    !client.crossOrigin && client.topOrigin === undefined,
    data.subarray(0, 32).equals(await sha256(utf8(statement.rp_id))) && (data[32] & 5) === 5,
    await subtle.verify(ALGORITHMS.ES256, passkey, rawSignature(bytes("signature")), message),
  ].every(Boolean);
}

async function checkExample(file) {
  const page = (await readFile(file, "utf8")).split(/^## \d+\. .*$/m);
  const blocks = page.map((text) => [...text.matchAll(/^```\w+\n(.*?)\n```$/gms)].map((match) => match[1]));
  const json = (section, index) => JSON.parse(blocks[section][index]);
  const [agent, receiptKey, tokenKey] = await Promise.all(["agent", "receipt key", "token key"].map((name) => namedKey(name, "EdDSA")));
  const passkey = await namedKey("passkey", "ES256");
  const api = async (path, section, index, body) =>
    proof(agent, "POST", `https://registry.example${path}`, { body, iat: 1800000000, jti: part(blocks[section][index], 1).jti });
  const manifest = await signed(agent, "agent-manifest+jwt", json(2, 1));
  const statement = json(5, 1);
  const token = blocks[7][4];
  const { method, url } = json(8, 2);
  const call = await proof(agent, method, url, { token, iat: 1800000000, jti: json(8, 0).jti });
  const [x, y] = [passkey.jwk.x, passkey.jwk.y].map((n) => Buffer.from(n, "base64url").toString("hex"));
  const inText = (section, value) => [page[section].includes(`\`${value}\``), true];
  const checks = {
    "agent key": [canonical(agent.jwk), canonical(json(1, 0))],
    "agent jkt": inText(1, agent.jkt),
    manifest: [manifest, blocks[2][2]],
    "manifest hash": inText(2, await digest(manifest, "hex")),
    "registration body": [JSON.stringify({ manifest }), blocks[3][0]],
    "registration bh": [await digest(blocks[3][0]), json(3, 1).bh],
    "registration proof": [await api("/v1/agents", 3, 2, blocks[3][0]), blocks[3][2]],
    "request proof": [await api("/v1/grants", 4, 1, blocks[4][0]), blocks[4][1]],
    "consent hash": [await digest(blocks[5][0], "hex"), statement.consent_sha256],
    "statement in RFC 8785 form": [canonical(statement), blocks[5][1]],
    challenge: inText(5, await digest(tagged(statement))),
    "passkey as COSE_Key": inText(5, `a5010203262001215820${x}225820${y}`),
    "receipt key": [receiptKey.jwk.x, json(6, 0).keys[0].x],
    receipt: [await compact(receiptKey, json(6, 1), part(blocks[6][2], 1)), blocks[6][2]],
    "receipt holds": [await receiptHolds(blocks[6][2], json(6, 0), "https://registry.example"), true],
    "token proof": [await api("/v1/tokens", 7, 0, JSON.stringify({ grant_id: statement.grant_id })), blocks[7][0]],
    "token key": [tokenKey.jwk.x, json(7, 1).keys[0].x],
    token: [await compact(tokenKey, json(7, 2), json(7, 3)), token],
    "token signature": [await verifies(token, json(7, 1).keys[0]), true],
    ath: inText(8, await digest(token)),
    "call proof": [call, blocks[8][1]],
    "verify body": [[json(8, 2).token, json(8, 2).proof].join(), [token, call].join()],
  };
  for (const [name, [made, shown]] of Object.entries(checks)) if (made !== shown) say("differs", { name, made, shown });
  const same = Object.values(checks).filter(([made, shown]) => made === shown).length;
  say("example", { same, of: Object.keys(checks).length });
  demand(same === Object.keys(checks).length, `${file} has other bytes`);
}

const text = (fallback) => ({ type: "string", default: fallback });
const { values: options } = parseArgs({
  options: {
    ...{ registry: text("http://localhost:8000"), "service-provider": text("demo-service"), "client-id": text(), "client-secret-file": text(), "enrolment-code": text() },
    ...{ key: text(), alg: text("EdDSA"), name: text("JavaScript agent"), "model-origin": text("models.example") },
    ...{ capabilities: text('[{"type":"read","resource":"calendar"}]'), action: text(), url: text() },
    ...{ renew: { type: "boolean" }, rotate: { type: "boolean" }, example: { type: "boolean" } },
    ...{ page: text(new URL("../docs/example.md", import.meta.url).pathname) },
  },
});

try {
  if (options.example) await checkExample(options.page);
  else await run({ ...options, capabilities: JSON.parse(options.capabilities), action: options.action && JSON.parse(options.action) });
} catch (fault) {
  if (!(fault instanceof Refused)) throw fault;
  say("error", fault.facts);
  process.exitCode = 1;
}
