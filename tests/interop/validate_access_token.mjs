// A resource server built on unmodified oauth4webapi: finds our metadata, then validates one request.
// stdin: {"issuer","audience","method","url","headers"}; stdout: the token's claims.
import { text } from 'node:stream/consumers'
import * as oauth from 'oauth4webapi'

const { issuer, audience, method, url, headers } = JSON.parse(await text(process.stdin))
// Only because a registry in development speaks http, on loopback.
const insecure = { [oauth.allowInsecureRequests]: new URL(issuer).protocol === 'http:' }

const response = await oauth.discoveryRequest(new URL(issuer), { algorithm: 'oauth2', ...insecure })
const server = await oauth.processDiscoveryResponse(new URL(issuer), response)
const request = new Request(url, { method, headers })
const claims = await oauth.validateJwtAccessToken(server, request, audience, { requireDPoP: true, ...insecure })
process.stdout.write(JSON.stringify(claims))
