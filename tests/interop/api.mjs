// An API on unmodified oauth4webapi: each request needs our token and a proof for exactly this request.
// arguments: issuer, audience (http://127.0.0.1:port); prints a line once it listens.
import { createServer } from 'node:http'
import * as oauth from 'oauth4webapi'

const [issuer, audience] = process.argv.slice(2)
const insecure = { [oauth.allowInsecureRequests]: new URL(issuer).protocol === 'http:' }
const response = await oauth.discoveryRequest(new URL(issuer), { algorithm: 'oauth2', ...insecure })
const server = await oauth.processDiscoveryResponse(new URL(issuer), response)

createServer(async ({ method, url, headers }, answer) => {
  const request = new Request(new URL(url, audience), { method, headers })
  try {
    const { client_id } = await oauth.validateJwtAccessToken(server, request, audience, { requireDPoP: true, ...insecure })
    answer.writeHead(200, { 'Content-Type': 'application/json' }).end(JSON.stringify({ agent: client_id, url }))
  } catch (error) {
    answer.writeHead(401, { 'WWW-Authenticate': 'DPoP error="invalid_token"' }).end()
  }
}).listen(Number(new URL(audience).port), '127.0.0.1', () => console.log('listening'))
