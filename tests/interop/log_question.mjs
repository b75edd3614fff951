// What is asked on the command line, and the verdict.
import * as fs from 'node:fs'
import { parseArgs } from 'node:util'
import { Bad, Notary, readKeys, utf8 } from './log_forms.mjs'
import { consistency, inclusion } from './log_proofs.mjs'
import { Walk } from './log_walk.mjs'

/** Throws what is wrong with the arguments or the keys. */
export function question(args) {
  const text = { type: 'string' }
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      'trusted-keys': text, 'old-checkpoint': { ...text, multiple: true }, inclusion: text, checkpoint: text,
      consistency: text, first: text, second: text, bundle: text, event: text,
    },
  })
  const { 'trusted-keys': keys, 'old-checkpoint': old = [], ...rest } = values
  const ways = ['', 'checkpoint inclusion', 'checkpoint event inclusion', 'bundle event', 'consistency first second']
  const way = Object.keys(rest).sort().join(' ')
  if (!keys || !ways.includes(way) || positionals.length !== (way ? 0 : 1)) throw new Error('see the top of verify_log.mjs')
  if (way && old.length) throw new Error('--old-checkpoint goes with a folder')
  return { folder: positionals[0], old, options: rest, notary: new Notary(readKeys(utf8(fs.readFileSync(keys)) ?? '?')) }
}

export async function judge({ folder, old, options, notary }) {
  const walk = new Walk(folder, notary)
  let [problem, firstBad] = [null, null]
  try {
    if (folder) await walk.run(old)
    else walk.shown = (options.consistency ? consistency : inclusion)(options, notary)
  } catch (error) {
    // Besides what is bad, only what the system says of a file.
    if (!(error instanceof Bad || typeof error.errno === 'number')) throw error
    problem = error.message
    firstBad = folder ? (error.firstBad ?? walk.size) : null
  }
  const { size, root } = walk.shown
  return {
    ok: problem === null,
    tree_size: size,
    root_hash: root ? root.toString('base64') : null,
    events: folder ? size : Number(problem === null && 'event' in options),
    newest_checkpoint: notary.newest,
    first_bad: firstBad,
    problem,
  }
}
