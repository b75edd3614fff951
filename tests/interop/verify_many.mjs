// Arguments of verify_log.mjs as one JSON array a line on stdin; a verdict a line on stdout. For many small folders.
import { createInterface } from 'node:readline'
import { judge, question } from './log_question.mjs'

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await judge(question(JSON.parse(line))))}\n`)
}
