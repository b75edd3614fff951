// A client built on unmodified oauth4webapi: finds our metadata, introspects a token, revokes it, introspects it again.
// stdin: {"issuer","client_id","client_secret","token"}; stdout: the two answers of introspection.
import { text } from 'node:stream/consumers'
import * as oauth from 'oauth4webapi'

const { issuer, client_id, client_secret, token } = JSON.parse(await text(process.stdin))
// Only because a registry in development speaks http, on loopback.
const insecure = { [oauth.allowInsecureRequests]: new URL(issuer).protocol === 'http:' }
const client = { client_id }
const authentication = oauth.ClientSecretBasic(client_secret)

const response = await oauth.discoveryRequest(new URL(issuer), { algorithm: 'oauth2', ...insecure })
const server = await oauth.processDiscoveryResponse(new URL(issuer), response)

const introspect = async () => {
  const additionalParameters = { token_type_hint: 'access_token' }
  const asked = await oauth.introspectionRequest(server, client, authentication, token, { additionalParameters, ...insecure })
  return oauth.processIntrospectionResponse(server, client, asked)
}
const before = await introspect()
const revoked = await oauth.revocationRequest(server, client, authentication, token, insecure)
await oauth.processRevocationResponse(revoked)
const after = await introspect()
process.stdout.write(JSON.stringify([before, after]))
