// An agent built on the unmodified npm package dpop: signs proofs for one request with a given key.
// stdin: {"pem","alg","method","url","token","count","nonce"}; stdout: a list of proofs.
import { createPrivateKey, createPublicKey } from 'node:crypto'
import { text } from 'node:stream/consumers'
import { generateProof } from 'dpop'

const { pem, alg, method, url, token, count, nonce } = JSON.parse(await text(process.stdin))
const algorithm = alg === 'ES256' ? { name: 'ECDSA', namedCurve: 'P-256' } : { name: 'Ed25519' }

const privateJwk = createPrivateKey(pem).export({ format: 'jwk' })
const publicJwk = createPublicKey(pem).export({ format: 'jwk' })
const pair = {
  privateKey: await crypto.subtle.importKey('jwk', privateJwk, algorithm, false, ['sign']),
  publicKey: await crypto.subtle.importKey('jwk', publicJwk, algorithm, true, ['verify']),
}
const proofs = []
for (let made = 0; made < count; made++) {
  proofs.push(await generateProof(pair, url, method, nonce, token))
}
process.stdout.write(JSON.stringify(proofs))
