// Proofs of one leaf and of growth, by the loops of RFC 9162 sections 2.1.3.2 and 2.1.4.2.
import { Bad, SIZE, canonical, decoded, join, leafOf, readJson, sha256, smallFile, utf8 } from './log_forms.mjs'

const EVENT_TAG = Buffer.from('agentauth/event/v1\0')
const FIELD_TAG = Buffer.from('agentauth/field/v1\0')

function hashes(texts) {
  const list = Array.isArray(texts) && texts.length <= 63 ? texts.map((text) => decoded(text, 'base64', 32)) : [null]
  return list.includes(null) ? null : list
}

/** The root an inclusion proof leads to, or null. BigInt, since shifts of numbers end at 32 bits. */
function rootFromPath(index, size, leaf, steps) {
  let [fn, sn, node] = [BigInt(index), BigInt(size) - 1n, leaf]
  if (fn > sn) return null
  for (const step of steps) {
    if (sn === 0n) return null
    if (fn & 1n || fn === sn) {
      node = join(step, node)
      while (!(fn & 1n) && fn) [fn, sn] = [fn >> 1n, sn >> 1n]
    } else node = join(node, step)
    fn >>= 1n
    sn >>= 1n
  }
  return sn === 0n ? node : null
}

function addsTo(first, second, steps) {
  if (first.size < 1 || first.size > second.size) return false
  if (first.size === second.size) return steps.length === 0 && first.root.equals(second.root)
  let [fn, sn] = [BigInt(first.size) - 1n, BigInt(second.size) - 1n]
  const isFull = (BigInt(first.size) & fn) === 0n
  const [start, ...others] = isFull ? [first.root, ...steps] : steps
  if (!start) return false
  while (fn & 1n) [fn, sn] = [fn >> 1n, sn >> 1n]
  let [fr, sr] = [start, start]
  for (const step of others) {
    if (sn === 0n) return false
    if (fn & 1n || fn === sn) {
      fr = join(step, fr)
      sr = join(step, sr)
      while (!(fn & 1n) && fn) [fn, sn] = [fn >> 1n, sn >> 1n]
    } else sr = join(sr, step)
    fn >>= 1n
    sn >>= 1n
  }
  return sn === 0n && fr.equals(first.root) && sr.equals(second.root)
}

/** { leaf, index } of an event as the API shows it; its openings must open its commitments. */
function readEvent(file) {
  const { salt, leaf_index: index = null, openings = {}, ...event } = Object(readJson(file))
  const bytes = decoded(salt, 'base64url', 32)
  const isNumber = Number.isInteger(index) && index >= 0
  if (!bytes || !(isNumber || index === null)) throw new Bad(file, 'no event with a salt')
  for (const [member, opening] of Object.entries(openings)) {
    const fieldSalt = decoded(opening?.salt, 'base64url', 32)
    const field = fieldSalt && Buffer.concat([FIELD_TAG, fieldSalt, Buffer.from(canonical(opening.value ?? null))])
    const expected = field && canonical({ commitment: sha256(field).toString('base64url') })
    const bare = Object.keys(opening ?? {}).sort().join() === 'salt,value'
    if (!bare || !expected || canonical(event.data?.[member] ?? null) !== expected) throw new Bad(file, 'an opening opens nothing')
  }
  return { index, leaf: leafOf(sha256(Buffer.concat([EVENT_TAG, bytes, Buffer.from(canonical(event))]))) }
}

function readBundle(file, notary) {
  const text = utf8(smallFile(file, file))
  const gap = text?.indexOf('\n\n') ?? -1
  const lines = gap < 0 ? [] : text.slice(0, gap).split('\n')
  const isProof = lines.shift() === 'c2sp.org/tlog-proof@v1'
  const extra = lines[0]?.startsWith('extra ') ? lines.shift().slice(6) : null
  const [label, index, ...more] = (lines.shift() ?? '').split(' ')
  const steps = hashes(lines)
  const isGood = isProof && label === 'index' && SIZE.test(index) && !more.length && steps
  if (!isGood || (extra !== null && !(extra && decoded(extra, 'base64')))) throw new Bad(file, 'not a log proof')
  return { tree: notary.open(Buffer.from(text.slice(gap + 2)), file), index: Number(index), steps }
}

export function inclusion(options, notary) {
  const event = options.event ? readEvent(options.event) : null
  let [found, leaf] = [null, event?.leaf]
  if (options.bundle) found = readBundle(options.bundle, notary)
  else {
    const tree = notary.open(smallFile(options.checkpoint, options.checkpoint), options.checkpoint)
    const proof = Object(readJson(options.inclusion))
    found = { tree, index: proof.leaf_index, steps: hashes(proof.audit_path) }
    leaf = decoded(proof.leaf_hash, 'base64', 32)
    const root = decoded(proof.root_hash, 'base64', 32)
    if (!Number.isInteger(found.index) || found.index < 0 || !found.steps || !leaf || !root) {
      throw new Bad(options.inclusion, 'not an inclusion proof')
    }
    if (proof.tree_size !== tree.size || !root.equals(tree.root)) throw new Bad(options.inclusion, 'another tree')
  }
  const fits = !event || (event.leaf.equals(leaf) && [null, found.index].includes(event.index))
  if (!fits) throw new Bad(options.event, 'another event')
  const root = rootFromPath(found.index, found.tree.size, leaf, found.steps)
  if (!root?.equals(found.tree.root)) throw new Bad(options.inclusion ?? options.bundle, 'leads elsewhere')
  return found.tree
}

export function consistency(options, notary) {
  const [first, second] = [options.first, options.second].map((file) => notary.open(smallFile(file, file), file))
  const proof = Object(readJson(options.consistency))
  const steps = hashes(proof.consistency_path)
  const isTheirs = proof.first === first.size && proof.second === second.size
  if (!steps || !isTheirs || !addsTo(first, second, steps)) throw new Bad(options.consistency, 'does not lead from one to the other')
  return second
}
