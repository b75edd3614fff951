"""Declare the commands and options of `agentauth` with Typer; `log_application` has the rest."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Final

from agentauth.protocol.errors import AgentAuthError
from agentauth.sdk.bounded_http import MAX_ANSWER_BYTES
from agentauth.sdk.key_store_choice import KeyStoreName
from agentauth.sdk.stderr_output import print_stderr

from . import agent_commands, mcp_server
from .agent_options import Connection
from .doctor import doctor
from .log_application import Json, log_app
from .output import show_error, show_json
from .result import NEEDS_EXTRA, USAGE, code_of
from .run_command import run_command

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
    float | None,
    typer.Option(min=0, metavar="SECONDS", help="Stop after this long, with exit code 3."),
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
    return run_command(
        agent_commands.keygen(Connection(registry, key_file, key_store)), as_json=as_json
    )


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
        typer.Option(
            "--renew",
            help="Renew the manifest; with -c, declare these capabilities instead of the others.",
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Register the agent at the registry, show its claim link again, or renew its manifest."""
    command = agent_commands.register(
        Connection(registry, key_file, key_store),
        name=name,
        enrolment_code=enrolment_code,
        capabilities=capability or [],
        renew=renew,
    )
    return run_command(command, as_json=as_json)


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
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="With --wait: stop after this long, with exit code 3."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Ask a person for a grant, unless an existing grant already covers the request."""
    command = agent_commands.request(
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
    return run_command(command, as_json=as_json)


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
    command = agent_commands.wait_for(
        Connection(registry, key_file, key_store), grant, timeout=timeout
    )
    return run_command(command, as_json=as_json)


@app.command()
def token(
    service_provider: ServiceProvider,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    grant: Annotated[str | None, typer.Option(help="Use the grant with this id.")] = None,
    action: ActionText = None,
    as_json: Json = False,
) -> int:
    """Print an access token. It is useless without the agent's key, but keep it private."""
    command = agent_commands.token(
        Connection(registry, key_file, key_store), service_provider, grant=grant, action=action
    )
    return run_command(command, as_json=as_json)


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
    command = agent_commands.call(
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
    return run_command(command, as_json=as_json)


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
    return run_command(
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
    return run_command(
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
    command = agent_commands.whoami(Connection(registry, key_file, key_store), offline=offline)
    return run_command(command, as_json=as_json)


@app.command("doctor")
def diagnose(
    registry: RegistryUrl = DEFAULT_REGISTRY,
    key_file: KeyFile = None,
    key_store: KeyStore = "file",
    as_json: Json = False,
) -> int:
    """Check clock, address, reachability, key store, manifest and versions."""
    return run_command(doctor(Connection(registry, key_file, key_store)), as_json=as_json)


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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an error as one JSON object.")
    ] = False,
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


# ---- an auditor and a witness

app.add_typer(log_app)
