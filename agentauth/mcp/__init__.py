"""AgentAuth and the Model Context Protocol, on the official SDK (`mcp`, extra `mcp`).

- `server`: an MCP server through which any MCP client uses protected services. It is made of
  `options` (how it runs), `server_tools` (what its tools do), `argument_checks` (checked before
  anything is sent), `url_elicitation` (links for a person), `outcomes` and `access_outcomes` (what
  the client sees).
- `protect`: checks each call of an MCP server's tools with verify. `tool_action` maps tools to
  actions, `tool_call_messages` reads and writes the JSON-RPC of a call.
- `signing`: signs the calls of a Python MCP client to a protected server.

Importing this package alone needs no further packages, so that a command line can offer `run`.
"""

from .options import Options

__all__ = ["Options", "run"]


def run(options: Options | None = None) -> None:
    """Run the MCP server, as `server.run`. Raises ImportError without the extra `mcp`."""
    from .server import run as serve

    serve(options)
