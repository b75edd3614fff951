"""AgentAuth and the Model Context Protocol, on the official SDK (`mcp`, extra `mcp`).

- `server`: an MCP server through which any MCP client uses protected services. It is made of
  `options` (how it runs), `access` (what its tools do), `people` (links for a person) and `results`
  (what the client sees).
- `protect`: checks each call of an MCP server's tools with verify. `rules` maps tools to actions,
  `messages` reads and writes the JSON-RPC of a call.
- `client_auth`: signs the calls of a Python MCP client to a protected server.
"""
