"""Declare the commands and options of `agentauth` with Typer, and run one command."""

import asyncio
from collections.abc import Coroutine, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Final

from agentauth.protocol.errors import AgentAuthError
from agentauth.sdk.bounded_http import MAX_ANSWER_BYTES
from agentauth.sdk.key_store_choice import KeyStoreName
from agentauth.sdk.stderr_output import print_stderr

from . import agent_commands, auditor_commands, mcp_server, witness_commands
from .agent_options import Connection
from .doctor import doctor
from .output import show, show_error, show_json
from .result import INTERRUPTED, NEEDS_EXTRA, USAGE, Outcome, code_of

try:
    import typer
except ImportError as error:
    raise ImportError(NEEDS_EXTRA) from error

DEFAULT_REGISTRY: Final = "http://localhost:8000"

app = typer.Typer(
    name="agentauth",
    help="Act as an agent, check what a registry says, or run a witness, from the command line.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
RegistryUrl = Annotated[
    str,
    typer.Option("--registry", envvar="AGENTAUTH_REGISTRY", help="The registry's address."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        envvar="AGENTAUTH_KEY_FILE",
        help="Path of the key file (default: one file for each registry).",
    ),
]
KeyStore = Annotated[
    KeyStoreName,
    typer.Option(
        envvar="AGENTAUTH_KEY_STORE",
        help="Where the key is: the key file, the system's keyring, or $AGENTAUTH_KEY.",
    ),
]
Name = Annotated[str | None, typer.Option(help="The name a person sees.")]
EnrolmentCode = Annotated[
    str | None, typer.Option(help="Assigns the agent to the person who made the code.")
]
Capabilities = Annotated[
    list[str] | None,
    typer.Option(
        "--capability",
        "-c",
        metavar="CAPABILITY",
        help="read:calendar, transact:payments:100.00:EUR, custom:acme.crm.merge:contacts or a "
        "JSON object; repeatable.",
    ),
]
ServiceProvider = Annotated[str, typer.Argument(help="Id or slug.")]
ActionText = Annotated[
    str | None,
    typer.Option(
        "--action",
        help="What the call does, written like a capability; selects one of several grants.",
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the person's decision.")]
Timeout = Annotated[
    float | None, typer.Option(min=0, metavar="SECONDS", help="Stop waiting, with exit code 3.")
]
TrustedVkeys = Annotated[
    Path, typer.Option("--trusted-keys", metavar="FILE", help="A file of C2SP vkeys, one per line.")
]
ProofFile = Annotated[Path | None, typer.Option(metavar="FILE")]
WitnessKey = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="The witness's name and private key.")
]
WitnessState = Annotated[
    Path, typer.Option("--state", metavar="FILE", help="The state of the witness (SQLite).")
]


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    command = typer.main.get_command(app)
    try:
        code = command.main(list(arguments), prog_name="agentauth", standalone_mode=False)
    except typer.TyperException as error:
        # Wrong arguments. Typer would echo them unescaped; `print_stderr` escapes control
        # characters.
        message = error.format_message()
        if "--json" in arguments:
            show_json({"error": "usage", "error_description": message, "reason": None})
        elif message:
            sentence = " ".join(message.split()).removesuffix(".")
            # Name the command, so that the message points to its own --help.
            context = getattr(error, "ctx", None)
            path = context.command_path if context is not None else "agentauth"
            print_stderr(f"error: {sentence}. See {path} --help.")
        return USAGE
    return code if isinstance(code, int) else 0


def finish(command: Coroutine[None, None, Outcome], *, as_json: bool) -> int:
    """Run the command, print its outcome or error, and return the exit code."""
    try:
        outcome = asyncio.run(command)
    except AgentAuthError as error:
        show_error(error, as_json=as_json)
        return code_of(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    show(outcome, as_json=as_json)
    return outcome.code


def _show_version(asked: bool) -> None:  # noqa: FBT001 — Typer's callback
    if asked:
        try:
            typer.echo(f"agentauth-sdk {version('agentauth-sdk')}")
        except PackageNotFoundError:
            typer.echo("agentauth-sdk, from a checkout")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options of `agentauth` itself."""


# ---- an agent


@app.command()
def keygen(
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    as_json: Json = False,
) -> int:
    """Create a key and print its thumbprint."""
    return finish(agent_commands.keygen(Connection(registry, key_file, key_store)), as_json=as_json)


@app.command()
def register(
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    name: Name = None,
    enrolment_code: EnrolmentCode = None,
    capability: Capabilities = None,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Declare these capabilities instead of the earlier ones."),
    ] = False,
    as_json: Json = False,
) -> int:
    """Register the agent at the registry, or show its claim link again."""
    done = agent_commands.register(
        Connection(registry, key_file, key_store),
        name=name,
        enrolment_code=enrolment_code,
        capabilities=capability or [],
        renew=renew,
    )
    return finish(done, as_json=as_json)


@app.command()
def request(
    service_provider: ServiceProvider,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    name: Name = None,
    enrolment_code: EnrolmentCode = None,
    capability: Capabilities = None,
    envelope: Annotated[str | None, typer.Option(help="Limits, as a JSON object.")] = None,
    reason: Annotated[str, typer.Option(help="One sentence for the person: why you need it.")] = "",
    ask_again: Annotated[
        bool, typer.Option("--ask-again", help="Ask even if the person denied this before.")
    ] = False,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> int:
    """Ask a person for a grant, unless an existing grant already covers the request."""
    done = agent_commands.request(
        Connection(registry, key_file, key_store),
        service_provider,
        name=name,
        enrolment_code=enrolment_code,
        capabilities=capability or [],
        envelope=envelope,
        reason=reason,
        ask_again=ask_again,
        wait=wait,
        timeout=timeout,
    )
    return finish(done, as_json=as_json)


@app.command()
def wait(
    grant: Annotated[
        str | None, typer.Argument(help="The grant's id (default: the only pending grant).")
    ] = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    timeout: Timeout = None,
    as_json: Json = False,
) -> int:
    """Wait for the decision about a grant."""
    done = agent_commands.wait_for(
        Connection(registry, key_file, key_store), grant, timeout=timeout
    )
    return finish(done, as_json=as_json)


@app.command()
def token(
    service_provider: ServiceProvider,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    grant: Annotated[str | None, typer.Option(help="Use this grant and no other.")] = None,
    action: ActionText = None,
    as_json: Json = False,
) -> int:
    """Print an access token. It is useless without the agent's key, but keep it private."""
    done = agent_commands.token(
        Connection(registry, key_file, key_store), service_provider, grant=grant, action=action
    )
    return finish(done, as_json=as_json)


@app.command()
def call(
    service_provider: ServiceProvider,
    method: Annotated[str, typer.Argument(help="GET, POST, …")],
    url: Annotated[str, typer.Argument(help="A path at the service provider, or an absolute URL.")],
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    action: ActionText = None,
    data: Annotated[str | None, typer.Option(help="The body, as JSON.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Names the operation, so that a retry runs it once.")
    ] = None,
    max_bytes: Annotated[
        int, typer.Option(min=1, metavar="BYTES", help="Refuse a longer response.")
    ] = MAX_ANSWER_BYTES,
    wait: Annotated[
        bool, typer.Option("--wait", help="If a person must decide first, wait for it.")
    ] = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> int:
    """Call a service provider and print its answer."""
    done = agent_commands.call(
        Connection(registry, key_file, key_store),
        service_provider,
        method,
        url,
        action=action,
        data=data,
        idempotency_key=idempotency_key,
        max_bytes=max_bytes,
        wait=wait,
        timeout=timeout,
    )
    return finish(done, as_json=as_json)


@app.command()
def grants(
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    status: Annotated[
        str | None, typer.Option(help="List only grants in this status, such as approved.")
    ] = None,
    as_json: Json = False,
) -> int:
    """List the agent's grants, oldest first."""
    return finish(
        agent_commands.grants(Connection(registry, key_file, key_store), status=status),
        as_json=as_json,
    )


@app.command()
def revoke(
    grant: Annotated[str, typer.Argument(help="The grant's id.")],
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    as_json: Json = False,
) -> int:
    """End a grant permanently: revoke an approved one, withdraw a pending one."""
    return finish(
        agent_commands.revoke(Connection(registry, key_file, key_store), grant), as_json=as_json
    )


@app.command()
def whoami(
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Read only the key; do not contact the registry."),
    ] = False,
    as_json: Json = False,
) -> int:
    """Show this agent's id and status."""
    done = agent_commands.whoami(Connection(registry, key_file, key_store), offline=offline)
    return finish(done, as_json=as_json)


@app.command("doctor")
def diagnose(
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    as_json: Json = False,
) -> int:
    """Check clock, address, reachability, key store, manifest and versions."""
    return finish(doctor(Connection(registry, key_file, key_store)), as_json=as_json)


@app.command("mcp")
def serve_mcp(
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    name: Name = None,
    enrolment_code: EnrolmentCode = None,
    service: Annotated[
        list[str] | None,
        typer.Option(help="Allow only this service provider; repeatable."),
    ] = None,
    http: Annotated[
        bool, typer.Option("--http", help="Serve streamable HTTP at /mcp instead of stdio.")
    ] = False,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8765,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A Host header that requests may have; repeatable.")
    ] = None,
    allowed_origin: Annotated[
        list[str] | None, typer.Option(help="An Origin that requests may have; repeatable.")
    ] = None,
    qr_code: Annotated[
        bool, typer.Option("--qr-code", help="Also show links for a person as QR codes.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Let an MCP client use protected services as this agent."""
    try:
        mcp_server.serve(
            registry=registry,
            key_file=key_file,
            key_store=key_store,
            name=name,
            enrolment_code=enrolment_code,
            services=service or [],
            http=http,
            host=host,
            port=port,
            allowed_hosts=allowed_host or [],
            allowed_origins=allowed_origin or [],
            qr_code=qr_code,
        )
    except AgentAuthError as error:
        show_error(error, as_json=as_json)
        return code_of(error)
    return 0


# ---- an auditor


@app.command()
def verify_receipt(
    file: Annotated[Path, typer.Argument(help="The receipt, a compact JWS.")],
    trusted_keys: Annotated[Path, typer.Option(metavar="FILE", help="A JWK Set you trust.")],
    issuer: Annotated[str | None, typer.Option(help="Also require this issuer.")] = None,
    as_json: Json = False,
) -> int:
    """Check an approval receipt, without any server."""
    done = auditor_commands.check_approval(file=file, trusted_keys=trusted_keys, issuer=issuer)
    return finish(done, as_json=as_json)


@app.command()
def verify_log(
    folder: Annotated[Path, typer.Argument(help="An export or an archive.")],
    trusted_keys: TrustedVkeys,
    old_checkpoint: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A checkpoint kept from earlier; repeatable."),
    ] = None,
    accept_break: Annotated[
        list[str] | None, typer.Option(metavar="BREAK", help="Accept this break of the log.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check an export or archive of the audit log, without any server."""
    done = auditor_commands.check_log(
        folder=folder,
        trusted_keys=trusted_keys,
        old_checkpoint=old_checkpoint or [],
        accept_break=accept_break or [],
    )
    return finish(done, as_json=as_json)


@app.command()
def verify_proof(
    trusted_keys: TrustedVkeys,
    inclusion: ProofFile = None,
    checkpoint: ProofFile = None,
    bundle: ProofFile = None,
    event: ProofFile = None,
    consistency: ProofFile = None,
    first: ProofFile = None,
    second: ProofFile = None,
    as_json: Json = False,
) -> int:
    """Check one proof from the audit log, without any server.

    Give --inclusion with --checkpoint, --bundle with --event, or --consistency with --first and
    --second.
    """
    done = auditor_commands.check_proof(
        trusted_keys=trusted_keys,
        inclusion=inclusion,
        checkpoint=checkpoint,
        bundle=bundle,
        event=event,
        consistency=consistency,
        first=first,
        second=second,
    )
    return finish(done, as_json=as_json)


# ---- a witness


@app.command()
def witness_keygen(
    name: Annotated[
        str, typer.Argument(help="The name it signs under, such as witness.example.com/w1.")
    ],
    key: WitnessKey,
    state: WitnessState,
    as_json: Json = False,
) -> int:
    """Create a witness's key and empty state, and print its vkey."""
    return finish(witness_commands.witness_keygen(name=name, key=key, state=state), as_json=as_json)


@app.command()
def witness(
    key: WitnessKey,
    state: WitnessState,
    logs: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The logs' vkeys, one per line, followed by the origin if it differs.",
        ),
    ],
    port: Annotated[int, typer.Option(help="The port to listen on; 0: any free port.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    as_json: Json = False,
) -> int:
    """Run a witness: cosign a log's checkpoint if the log has only grown since the last one."""
    done = witness_commands.witness(key=key, state=state, logs=logs, host=host, port=port)
    return finish(done, as_json=as_json)
