// A gzip file that is exactly one member (RFC 1952): zlib's own reader passes over what comes after the first.
import * as fs from 'node:fs'
import * as zlib from 'node:zlib'

const LONGEST_HEADER = 128 * 1024

/** How long the header of a gzip member is (RFC 1952), or 0 where it is none. */
function headerLength(head) {
  if (head.length < 10 || head[0] !== 0x1f || head[1] !== 0x8b || head[2] !== 8 || head[3] & 0xe0) return 0
  let at = 10
  if (head[3] & 4) at += 2 + (at + 2 <= head.length ? head.readUInt16LE(at) : LONGEST_HEADER)
  for (const flag of [8, 16]) {
    if (head[3] & flag) {
      const end = head.indexOf(0, at)
      at = end < 0 ? head.length + 1 : end + 1
    }
  }
  if (head[3] & 2) {
    if (at + 2 > head.length || head.readUInt16LE(at) !== (crc32(head.subarray(0, at)) & 0xffff)) return 0
    at += 2
  }
  return at <= head.length ? at : 0
}

const TABLE = Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1
  return n >>> 0
})
function crc32(bytes, before = 0) {
  if (zlib.crc32) return zlib.crc32(bytes, before)
  let sum = ~before
  for (const byte of bytes) sum = TABLE[(sum ^ byte) & 255] ^ (sum >>> 8)
  return ~sum >>> 0
}

/** The contents, in pieces; `broken` makes the error for what is not one whole member. */
export async function* gunzipped(file, broken) {
  const { size, start, sum: named, length: told } = ends(file)
  if (!start) throw broken()
  const source = fs.createReadStream(file, { start, highWaterMark: 1 << 18 })
  const inflate = zlib.createInflateRaw({ chunkSize: 1 << 18 })
  let [length, sum] = [0, 0]
  source.on('error', (error) => inflate.destroy(error))
  try {
    for await (const piece of source.pipe(inflate)) {
      length += piece.length
      sum = crc32(piece, sum)
      yield piece
    }
  } catch (error) {
    throw error.code?.startsWith('Z_') ? broken() : error
  } finally {
    source.destroy()
  }
  const isWhole = start + inflate.bytesWritten + 8 === size
  if (!isWhole || named !== sum || told !== length % 2 ** 32) throw broken()
}

/** Where the packed bytes start (0: nowhere), and the check sum and length that the last eight bytes tell. */
function ends(file) {
  const handle = fs.openSync(file)
  try {
    const { size } = fs.fstatSync(handle)
    const head = Buffer.alloc(Math.min(size, LONGEST_HEADER))
    fs.readSync(handle, head, 0, head.length, 0)
    const start = headerLength(head)
    if (!start || size < start + 8) return { size, start: 0 }
    const trailer = Buffer.alloc(8)
    fs.readSync(handle, trailer, 0, 8, size - 8)
    return { size, start, sum: trailer.readUInt32LE(0), length: trailer.readUInt32LE(4) }
  } finally {
    fs.closeSync(handle)
  }
}
