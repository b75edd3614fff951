// A second verifier of the audit log, after docs/protocol.md section 9 and the C2SP texts, without packages:
//   node verify_log.mjs FOLDER --trusted-keys FILE [--old-checkpoint FILE ...]
//   node verify_log.mjs --inclusion FILE --checkpoint FILE [--event FILE] --trusted-keys FILE
//   node verify_log.mjs --bundle FILE --event FILE --trusted-keys FILE
//   node verify_log.mjs --consistency FILE --first FILE --second FILE --trusted-keys FILE
// One JSON object on stdout; exit code 0 (good), 1 (bad), 2 (used wrongly).
import { judge, question } from './log_question.mjs'

let asked
try {
  asked = question(process.argv.slice(2))
} catch (error) {
  process.stderr.write(`verify_log.mjs: ${error.message}\n`)
  process.exit(2)
}
const verdict = await judge(asked)
process.stdout.write(`${JSON.stringify(verdict)}\n`)
process.exitCode = verdict.ok ? 0 : 1
