"""`python -m agentauth.mcp`: runs the MCP server."""

import argparse
import contextlib
import sys
from collections.abc import Sequence

from agentauth.protocol.errors import AgentAuthError
from agentauth.sdk.key_store_choice import KEY_STORES

from .options import Options
from .server import run


def parser() -> argparse.ArgumentParser:
    """The options, with the defaults of `Options`."""
    usual = Options(registry_url="http://localhost")
    made = argparse.ArgumentParser(
        prog="python -m agentauth.mcp", description="Serve protected services to an MCP client."
    )
    made.add_argument("--registry", help="the registry's address (default: $AGENTAUTH_REGISTRY)")
    made.add_argument("--key-file", help="path of the key file (default: one for each registry)")
    made.add_argument(
        "--key-store", choices=KEY_STORES, default=usual.key_store, help="default: %(default)s"
    )
    made.add_argument("--name", help="the agent's name that a person sees")
    made.add_argument("--enrolment-code", help="assigns the agent to the person who made the code")
    made.add_argument(
        "--service", action="append", default=[], help="use only this service; repeatable"
    )
    made.add_argument("--http", action="store_true", help="serve streamable HTTP instead of stdio")
    made.add_argument("--host", default=usual.host, help="default: %(default)s")
    made.add_argument("--port", type=int, default=usual.port, help="default: %(default)s")
    made.add_argument("--allowed-host", action="append", default=[], help="a Host header to take")
    made.add_argument("--allowed-origin", action="append", default=[], help="an Origin to take")
    made.add_argument("--qr-code", action="store_true", help="add links as QR codes")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server. Exits with 2 for options that cannot be used."""
    reading = parser()
    given = reading.parse_args(arguments)
    named = {"registry_url": given.registry} if given.registry else {}
    try:
        options = Options(
            **named,
            key_file=given.key_file,
            key_store=given.key_store,
            name=given.name,
            enrolment_code=given.enrolment_code,
            services=tuple(given.service),
            transport="http" if given.http else "stdio",
            host=given.host,
            port=given.port,
            allowed_hosts=tuple(given.allowed_host),
            allowed_origins=tuple(given.allowed_origin),
            qr_code=given.qr_code,
        )
    except AgentAuthError as error:
        reading.error(error.description)
    except ImportError as error:
        reading.error(str(error))
    with contextlib.suppress(KeyboardInterrupt):
        run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
