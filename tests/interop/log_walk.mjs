// One walk over all lines of an export or archive, from the first on (docs/protocol.md section 9).
import * as crypto from 'node:crypto'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { gunzipped } from './gunzip.mjs'
import { Bad, Notary, canonical, decoded, join, leafOf, parseStrictly, sha256, smallFile } from './log_forms.mjs'

const LONGEST_LINE = 1024 * 1024
const EVENT_TAG = Buffer.from('agentauth/event/v1\0')

export class Walk {
  constructor(folder, notary) {
    Object.assign(this, { folder, notary, size: 0, shown: { size: 0, root: null }, waiting: [] })
    // levels[h]: the root of the one full subtree of 2^h leaves that has no partner yet.
    this.levels = []
  }

  async run(oldFiles) {
    const kept = oldFiles.map((file) => this.notary.open(smallFile(file, file), file))
    const published = this.names('checkpoints').map((name) => {
      const place = `checkpoints/${name}`
      const found = this.notary.open(smallFile(path.join(this.folder, place), place), place)
      if (name !== String(found.size).padStart(20, '0')) throw new Bad(place, 'the name is of another size')
      return found
    })
    this.waiting = [...kept, ...published].sort((one, other) => one.size - other.size)
    const isArchive = this.isKind('segments', 'isDirectory')
    if (isArchive === this.isKind('lines.gz', 'isFile')) throw new Bad('.', 'an archive or an export is expected')
    if (isArchive) await this.archive()
    else {
      const head = this.notary.open(smallFile(path.join(this.folder, 'checkpoint'), 'checkpoint'), 'checkpoint')
      await this.takeIn('lines.gz', head)
    }
    for (const { place, size } of kept) if (size > this.size) throw new Bad(place, 'the log was longer once')
  }

  isKind(name, kind) {
    return fs.statSync(path.join(this.folder, name), { throwIfNoEntry: false })?.[kind]() ?? false
  }

  names(part) {
    const all = this.isKind(part, 'isDirectory') ? fs.readdirSync(path.join(this.folder, part)) : []
    return all.filter((name) => !name.startsWith('.')).sort()
  }

  async archive() {
    let previous = null
    for (const name of this.names('segments')) {
      const place = `segments/${name}`
      const bytes = smallFile(path.join(this.folder, place), place)
      if (name !== `${String(this.size).padStart(20, '0')}.json`) throw new Bad(place, 'not the next segment')
      const { head, objects } = this.manifest(bytes, place, previous)
      for (const object of objects) await this.holdAgainst(object)
      await this.takeIn(objects[0].key, head)
      previous = sha256(bytes).toString('hex')
    }
    if (previous === null) throw new Bad('segments', 'there is none')
  }

  manifest(bytes, place, previous) {
    const given = parseStrictly(bytes)
    const isText = (text) => typeof text === 'string'
    if (!isText(given?.checkpoint) || !isText(given.lines?.sha256) || !isText(given.parquet?.sha256)) {
      throw new Bad(place, 'not a manifest')
    }
    const head = this.notary.open(Buffer.from(given.checkpoint), place)
    const objects = [['lines', 'lines.gz'], ['parquet', 'parquet']].map(([part, ending]) => {
      const { sha256: digest, bytes: length } = given[part]
      const fits = /^[0-9a-f]{64}$/.test(digest) && Number.isSafeInteger(length)
      if (!fits) throw new Bad(place, 'an object without digest or length')
      return { key: `objects/${digest}.${ending}`, sha256: digest, bytes: length }
    })
    const expected = {
      version: 1, origin: this.notary.origin, first: this.size, end: head.size, previous,
      checkpoint: given.checkpoint, lines: objects[0], parquet: objects[1],
    }
    const same = Buffer.from(canonical(expected)).equals(bytes)
    if (!same || head.size <= this.size) throw new Bad(place, 'not the manifest of the next segment')
    return { head, objects }
  }

  async holdAgainst({ key, sha256: digest, bytes: length }) {
    const hash = crypto.createHash('sha256')
    let seen = -1
    if (this.isKind(key, 'isFile')) {
      seen = 0
      for await (const piece of fs.createReadStream(path.join(this.folder, key), { highWaterMark: 1 << 20 })) {
        seen += piece.length
        hash.update(piece)
      }
    }
    if (seen !== length || hash.digest('hex') !== digest) throw new Bad(key, 'not what the manifest says')
  }

  async takeIn(place, head) {
    this.greet()
    let rest = Buffer.alloc(0)
    const broken = () => new Bad(place, 'not exactly one gzip member', this.shown.size)
    for await (const piece of gunzipped(path.join(this.folder, place), broken)) {
      const all = rest.length ? Buffer.concat([rest, piece]) : piece
      let [from, to] = [0, all.indexOf(10)]
      for (; to >= 0; to = all.indexOf(10, from)) {
        this.line(all.subarray(from, to), place, head.size)
        from = to + 1
      }
      rest = all.subarray(from)
      if (rest.length > LONGEST_LINE) throw new Bad(place, 'a line without end')
    }
    if (rest.length) throw new Bad(place, 'the last line is cut off')
    if (this.size < head.size) throw new Bad(place, 'lines are missing')
    this.agree(head)
  }

  line(bytes, place, end) {
    if (bytes.length > LONGEST_LINE) throw new Bad(place, 'a line is too long')
    const expected = `${this.size} `
    const at = expected.length
    if (this.size === end || bytes.toString('latin1', 0, at) !== expected) throw new Bad(place, 'not the next line')
    const salt = decoded(bytes.toString('latin1', at, at + 43), 'base64url', 32)
    if (!salt || bytes[at + 43] !== 32) throw new Bad(place, 'a line without salt')
    this.grow(leafOf(sha256(Buffer.concat([EVENT_TAG, salt, bytes.subarray(at + 44)]))))
    this.greet()
  }

  grow(node) {
    let height = 0
    for (; this.levels[height]; height++) {
      node = join(this.levels[height], node)
      this.levels[height] = null
    }
    this.levels[height] = node
    this.size++
  }

  root() {
    const full = this.levels.filter(Boolean)
    return full.length ? full.reduce((right, left) => join(left, right)) : sha256(Buffer.alloc(0))
  }

  greet() {
    while (this.waiting[0]?.size === this.size) this.agree(this.waiting.shift())
  }

  agree(checkpoint) {
    if (!this.root().equals(checkpoint.root)) {
      throw new Bad(checkpoint.place, 'another tree was signed', this.shown.size)
    }
    this.shown = checkpoint
  }
}
