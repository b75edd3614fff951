// The official client, told what to do line by line in JSON; answers in lines of JSON.
//
// First line: {url} or {command, args, cwd}, and {era, links}. Each further one: {tool, arguments},
// or {list: true}. A link for a person is written as {link, message}, and answered by {action}.
import { createInterface } from "node:readline";
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const told = async () => {
  const { value, done } = await lines.next();
  return done ? null : JSON.parse(value);
};
const say = (answer) => process.stdout.write(JSON.stringify(answer) + "\n");

const { url, era, links, ...process_ } = await told();
const client = new Client(
  { name: "interop", version: "1" },
  {
    capabilities: links ? { elicitation: { url: {} } } : {},
    versionNegotiation: { mode: era },
  },
);
if (links) {
  client.setRequestHandler("elicitation/create", async ({ params }) => {
    say({ link: params.url, message: params.message, mode: params.mode });
    return { action: (await told()).action };
  });
}
await client.connect(
  url ? new StreamableHTTPClientTransport(new URL(url)) : new StdioClientTransport(process_),
);
say({ version: client.getNegotiatedProtocolVersion?.() });
for (let next = await told(); next !== null; next = await told()) {
  try {
    if (next.list) {
      say({ tools: (await client.listTools()).tools.map((tool) => tool.name) });
    } else {
      const result = await client.callTool({ name: next.tool, arguments: next.arguments });
      say({ body: result.structuredContent, isError: result.isError ?? false });
    }
  } catch (error) {
    say({ error: String(error) });
  }
}
await client.close();
