// What texts and bytes of a log have to look like: base64, JSON, keys, signed checkpoints (docs/protocol.md section 9, C2SP).
import * as crypto from 'node:crypto'
import * as fs from 'node:fs'

const SMALL = 256 * 1024
export const SIZE = /^(?:0|[1-9]\d{0,14})$/

export class Bad extends Error {
  constructor(place, why, firstBad) {
    super(`${place}: ${why}`)
    this.firstBad = firstBad
  }
}

export const sha256 = crypto.hash
  ? (bytes) => crypto.hash('sha256', bytes, 'buffer')
  : (bytes) => crypto.createHash('sha256').update(bytes).digest()
export const leafOf = (entry) => sha256(Buffer.concat([Buffer.of(0), entry]))
export const join = (left, right) => sha256(Buffer.concat([Buffer.of(1), left, right]))

/** Decodes what `encoding` would write in just this way, else null. */
export function decoded(text, encoding, length) {
  if (typeof text !== 'string') return null
  const bytes = Buffer.from(text, encoding)
  return bytes.toString(encoding) === text && (length === undefined || bytes.length === length) ? bytes : null
}

export function utf8(bytes) {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    return null
  }
}

export function smallFile(file, place) {
  const about = fs.statSync(file, { throwIfNoEntry: false })
  if (!about?.isFile() || about.size === 0 || about.size > SMALL) throw new Bad(place, 'no file of a possible size')
  return fs.readFileSync(file)
}

// ---- JSON

/** RFC 8785 for what parseStrictly lets through. */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`
  if (value === null || typeof value !== 'object') return JSON.stringify(value)
  const members = Object.keys(value).sort()
  return `{${members.map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join(',')}}`
}

/** undefined for JSON with a doubled member, a fraction, a number beyond 2^53 or half a character. */
export function parseStrictly(bytes) {
  const text = utf8(bytes)
  if (text === null) return undefined
  let value
  try {
    value = JSON.parse(text)
  } catch {
    return undefined
  }
  const bare = text.replace(/"(?:[^"\\]|\\.)*"/g, '""')
  let members = 0
  const fine = (part) => {
    if (typeof part === 'string') return part.isWellFormed()
    if (typeof part === 'number') return Number.isSafeInteger(part)
    if (Array.isArray(part)) return part.every(fine)
    if (part === null || typeof part !== 'object') return true
    members += Object.keys(part).length
    return Object.entries(part).every(([name, inner]) => !/[\ud800-\uffff]/.test(name) && fine(inner))
  }
  if (/\d[.eE]/.test(bare) || !fine(value)) return undefined
  return bare.split(':').length - 1 === members ? value : undefined
}

export function readJson(file) {
  const value = parseStrictly(smallFile(file, file))
  if (value === undefined) throw new Bad(file, 'not JSON of one meaning')
  return value
}

// ---- signed notes

/** vkey texts → Map from "name keyid" to { witness, key }. */
export function readKeys(text) {
  const keys = new Map()
  for (const line of text.split(/\r?\n/)) {
    if (line === '' || line.startsWith('#')) continue
    const [name, id, encoded, ...more] = line.split('+')
    // The base64 may hold plus signs itself.
    const material = decoded([encoded, ...more].join('+'), 'base64', 33)
    const right = material && sha256(Buffer.concat([Buffer.from(`${name}\n`), material])).toString('hex', 0, 4)
    if (!name || /[\p{White_Space}]/u.test(name) || right !== id || ![1, 4].includes(material[0])) {
      throw new Error(`not a verifier key: ${line}`)
    }
    const jwk = { kty: 'OKP', crv: 'Ed25519', x: material.toString('base64url', 1) }
    keys.set(`${name} ${id}`, { witness: material[0] === 4, key: crypto.createPublicKey({ key: jwk, format: 'jwk' }) })
  }
  if (keys.size === 0) throw new Error('no verifier keys')
  return keys
}

export class Notary {
  constructor(keys) {
    this.keys = keys
    this.origin = null
    this.newest = 0
  }

  /** { place, size, root } of a checkpoint that the log's own key signed; throws Bad. */
  open(bytes, place) {
    const text = utf8(bytes)
    const gap = text === null || /[\0-\x09\x0b-\x1f]/.test(text) ? -1 : text.lastIndexOf('\n\n')
    if (gap < 0 || !text.endsWith('\n')) throw new Bad(place, 'not a note')
    const body = text.slice(0, gap + 1)
    const [origin, size, root64, ...others] = body.slice(0, -1).split('\n')
    const root = decoded(root64, 'base64', 32)
    if (!origin || !SIZE.test(size ?? '') || !root || others.includes('')) throw new Bad(place, 'not a checkpoint')
    const lines = text.slice(gap + 2, -1).split('\n')
    if (lines.length > 16) throw new Bad(place, 'too many signatures')
    // The form of all first: what is not a note is not judged by its signatures.
    const signatures = lines.map((line) => this.#parse(line, place))
    let own = false
    for (const { name, id, signature } of signatures) {
      const known = this.keys.get(`${name} ${id}`)
      if (!known) continue
      const message = known.witness ? `cosignature/v1\ntime ${big(signature.subarray(0, 8))}\n${body}` : body
      const raw = known.witness ? signature.subarray(8) : signature
      if (!crypto.verify(null, Buffer.from(message), known.key, raw)) throw new Bad(place, 'a trusted key did not sign this')
      own ||= !known.witness && name === origin
    }
    if (!own) throw new Bad(place, 'not signed by a trusted key of this log')
    this.newest = Math.max(this.newest, Number(size))
    this.origin ??= origin
    if (origin !== this.origin) throw new Bad(place, 'another log')
    return { place, size: Number(size), root }
  }

  #parse(line, place) {
    const [dash, name, encoded, ...more] = line.split(' ')
    const bytes = decoded(encoded, 'base64')
    if (dash !== '—' || !name || /[+\p{White_Space}]/u.test(name) || more.length || !bytes || bytes.length < 5) {
      throw new Bad(place, 'not a signature line')
    }
    return { name, id: bytes.toString('hex', 0, 4), signature: bytes.subarray(4) }
  }
}

const big = (bytes) => (bytes.length ? BigInt(`0x${bytes.toString('hex')}`) : 0n)
