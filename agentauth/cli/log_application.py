"""Declare the commands of an auditor and of a witness with Typer."""

from pathlib import Path
from typing import Annotated

from . import auditor_commands, witness_commands
from .result import NEEDS_EXTRA
from .run_command import run_command

try:
    import typer
except ImportError as error:
    raise ImportError(NEEDS_EXTRA) from error

# `application` adds these commands to its own.
log_app = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
TrustedVkeys = Annotated[
    Path, typer.Option("--trusted-keys", metavar="FILE", help="A file of C2SP vkeys, one per line.")
]
WitnessKey = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="The witness's name and private key.")
]
WitnessState = Annotated[
    Path, typer.Option("--state", metavar="FILE", help="The state of the witness (SQLite).")
]


# ---- an auditor


@log_app.command()
def verify_receipt(
    file: Annotated[Path, typer.Argument(help="The receipt, a compact JWS.")],
    trusted_keys: Annotated[Path, typer.Option(metavar="FILE", help="A JWK Set you trust.")],
    issuer: Annotated[str | None, typer.Option(help="Also require this issuer.")] = None,
    as_json: Json = False,
) -> int:
    """Check an approval receipt, without any server."""
    command = auditor_commands.check_approval(file=file, trusted_keys=trusted_keys, issuer=issuer)
    return run_command(command, as_json=as_json)


@log_app.command()
def verify_log(
    folder: Annotated[Path, typer.Argument(help="An export or an archive.")],
    trusted_keys: TrustedVkeys,
    old_checkpoint: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A checkpoint kept from earlier; repeatable."),
    ] = None,
    accept_break: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BREAK",
            help="Accept this break, NAME:SIZE:ROOT as the page of the restore shows it; "
            "repeatable.",
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Check an export or archive of the audit log, without any server."""
    command = auditor_commands.check_log(
        folder=folder,
        trusted_keys=trusted_keys,
        old_checkpoint=old_checkpoint or [],
        accept_break=accept_break or [],
    )
    return run_command(command, as_json=as_json)


@log_app.command()
def verify_proof(
    trusted_keys: TrustedVkeys,
    inclusion: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The answer of /v1/audit/proof/inclusion."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The signed note of the tree that it names."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The same two as a C2SP tlog-proof."),
    ] = None,
    event: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The event, with its salt.")
    ] = None,
    consistency: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The answer of /v1/audit/proof/consistency."),
    ] = None,
    first: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The older tree's signed note.")
    ] = None,
    second: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The newer tree's signed note.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check one proof from the audit log, without any server.

    Give --inclusion with --checkpoint, --bundle with --event, or --consistency with --first and
    --second.
    """
    command = auditor_commands.check_proof(
        trusted_keys=trusted_keys,
        inclusion=inclusion,
        checkpoint=checkpoint,
        bundle=bundle,
        event=event,
        consistency=consistency,
        first=first,
        second=second,
    )
    return run_command(command, as_json=as_json)


# ---- a witness


@log_app.command()
def witness_keygen(
    name: Annotated[
        str, typer.Argument(help="The name it signs under, such as witness.example.com/w1.")
    ],
    key: WitnessKey,
    state: WitnessState,
    as_json: Json = False,
) -> int:
    """Create a witness's key and empty state, and print its vkey."""
    return run_command(
        witness_commands.witness_keygen(name=name, key=key, state=state), as_json=as_json
    )


@log_app.command()
def witness(
    key: WitnessKey,
    state: WitnessState,
    logs: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The logs' vkeys, one per line; if a log's origin is not its vkey's name, a space "
            "and the origin follow.",
        ),
    ],
    port: Annotated[int, typer.Option(help="The port to listen on; 0: any free port.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    as_json: Json = False,
) -> int:
    """Run a witness: cosign a log's checkpoint if the log has only grown since the last one."""
    command = witness_commands.witness(key=key, state=state, logs=logs, host=host, port=port)
    return run_command(command, as_json=as_json)
