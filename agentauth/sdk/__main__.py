"""The command line of an agent, an auditor and a witness: `python -m agentauth.sdk --help`."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Final

from agentauth.protocol.errors import AgentAuthError

from . import verify_log, verify_proof
from .commands import COMMANDS
from .terminal import show_error, show_json, show_lines

DEFAULT_REGISTRY: Final = "http://localhost:8000"


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object")
    agent = argparse.ArgumentParser(add_help=False, parents=[common])
    agent.add_argument(
        "--registry",
        default=os.environ.get("AGENTAUTH_REGISTRY", DEFAULT_REGISTRY),
        help="the registry's address (default: $AGENTAUTH_REGISTRY, else %(default)s)",
    )
    agent.add_argument(
        "--key-file", help="path of the key file (default: one file for each registry)"
    )
    asking = argparse.ArgumentParser(add_help=False)
    asking.add_argument("--name", help="the name a human sees")
    asking.add_argument("--enrolment-code", help="assigns the agent to the human who made the code")
    asking.add_argument(
        "-c",
        "--capability",
        action="append",
        default=[],
        metavar="CAPABILITY",
        help="read:calendar, transact:payments:100.00:EUR, custom:acme.crm.merge:contacts or a "
        "JSON object; repeatable",
    )

    main = argparse.ArgumentParser(
        prog="python -m agentauth.sdk", description="Act as an agent from the command line."
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "keygen", parents=[agent], help="create a key file and print the key's thumbprint"
    )
    commands.add_parser(
        "register", parents=[agent, asking], help="register the agent at the registry"
    )
    request = commands.add_parser(
        "request", parents=[agent, asking], help="ask a human for a grant"
    )
    request.add_argument("service_provider", help="id or slug")
    request.add_argument("--envelope", default="{}", help="limits, as a JSON object")
    request.add_argument("--reason", default="", help="the reason, in one sentence for the human")
    request.add_argument("--wait", action="store_true", help="wait for the human's decision")
    doing = argparse.ArgumentParser(add_help=False)
    doing.add_argument(
        "--action",
        help="what the call does, written like a capability; selects one of several grants",
    )
    token = commands.add_parser("token", parents=[agent, doing], help="print an access token")
    token.add_argument("service_provider", help="id or slug")
    token.add_argument("--grant", help="use this grant and no other")
    call = commands.add_parser(
        "call", parents=[agent, doing], help="call a service provider and print its answer"
    )
    call.add_argument("service_provider", help="id or slug")
    call.add_argument("method", type=str.upper)
    call.add_argument("url", help="a path at the service provider, or an absolute URL")
    call.add_argument("--data", help="the body, as JSON")
    call.add_argument("--idempotency-key", help="the key that names the operation, to retry it")
    receipt = commands.add_parser(
        "verify-receipt", parents=[common], help="check an approval receipt, without any server"
    )
    receipt.add_argument("file", help="the receipt, a compact JWS")
    receipt.add_argument(
        "--trusted-keys", required=True, metavar="FILE", help="a JWK Set you trust"
    )
    receipt.add_argument("--issuer", help="also require this issuer")
    _add_witness(commands, common)
    for name, module, text in (
        (
            "verify-log",
            verify_log,
            "check an export or archive of the audit log, without any server",
        ),
        ("verify-proof", verify_proof, "check one proof from the audit log, without any server"),
    ):
        module.arguments(commands.add_parser(name, parents=[common], help=text))
    return main


def _add_witness(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser
) -> None:
    files = argparse.ArgumentParser(add_help=False, parents=[common])
    files.add_argument(
        "--key", required=True, metavar="FILE", help="the witness's name and private key"
    )
    files.add_argument(
        "--state", required=True, metavar="FILE", help="the state of the witness (SQLite)"
    )
    keygen = commands.add_parser(
        "witness-keygen",
        parents=[files],
        help="create a witness's key and empty state, and print its vkey",
    )
    keygen.add_argument("name", help="the name it signs under, such as witness.example.com/w1")
    serve = commands.add_parser(
        "witness", parents=[files], help="cosign the checkpoints of logs that have only grown"
    )
    serve.add_argument(
        "--logs",
        required=True,
        metavar="FILE",
        help="the logs' vkeys, one per line, followed by the origin if it differs",
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)"
    )
    serve.add_argument("--port", type=int, required=True, help="0: any free port")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 0 done, 1 refused (reason on stderr), 2 bad usage."""
    options = parser().parse_args(arguments)
    try:
        answer = asyncio.run(COMMANDS[options.command](options))
    except AgentAuthError as error:
        if options.json:
            body = {
                "error": error.code,
                "error_description": error.description,
                "reason": error.reason,
            }
            show_json(body | error.fields)
        else:
            show_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        show_json(answer)
    else:
        show_lines(answer)
    return 1 if answer.get("ok") is False else 0


if __name__ == "__main__":
    sys.exit(main())
