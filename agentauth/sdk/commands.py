"""The commands of the command line: parsed arguments in, one flat record out."""

import argparse
import contextlib
import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Final

from agentauth.protocol.capability import Action, Capability, parse_action, parse_capability
from agentauth.protocol.encoding import read_json, read_object
from agentauth.protocol.errors import EncodingError, InvalidRequestError
from agentauth.protocol.keys import PrivateKey

from . import verify_log, verify_proof
from .addresses import check_registry_url
from .answers import Agent, Grant
from .client import AgentAuthClient
from .errors import KeyFileError
from .key_file import Identity, KeyFile, default_path
from .receipts import check_receipt, read_file, read_key_set, summary
from .terminal import tell
from .witness.commands import witness, witness_keygen

CommandResult = Mapping[str, object]


def read_capability(text: str) -> Capability:
    """`read:calendar`, `transact:payments:100.00:EUR`, `custom:acme.crm.merge:contacts`, or the
    JSON of protocol section 3.

    Raises InvalidRequestError.
    """
    if text.lstrip().startswith("{"):
        return parse_capability(read_object(text))
    match text.split(":"):
        case ["transact", resource, value, currency]:
            return Capability.transact(resource, max_amount=(value, currency))
        case ["custom", name, resource]:
            namespace, _, short = name.rpartition(".")
            return Capability.custom(namespace, short, resource)
        case [("read" | "write" | "delete") as kind, resource]:
            return parse_capability({"type": kind, "resource": resource})
    raise InvalidRequestError(
        f"{text!r} is not a capability such as read:calendar or transact:payments:100.00:EUR."
    )


def read_action(text: str | None) -> Action | None:
    """Read an action in the same form, such as `transact:payments:20.00:EUR`, or as JSON.

    Raises InvalidRequestError.
    """
    if text is None:
        return None
    if text.lstrip().startswith("{"):
        return parse_action(read_object(text))
    asked = read_capability(text)
    return Action(
        asked.type, asked.resource, asked.max_amount, namespace=asked.namespace, name=asked.name
    )


def _client(options: argparse.Namespace) -> AgentAuthClient:
    return AgentAuthClient(
        options.registry,
        key_file=options.key_file,
        enrolment_code=getattr(options, "enrolment_code", None),
        name=getattr(options, "name", None),
    )


def _capabilities(options: argparse.Namespace) -> list[Capability]:
    return [read_capability(text) for text in options.capability]


async def keygen(options: argparse.Namespace) -> CommandResult:
    """Create the key file. Raises KeyFileError if it exists: a key is never overwritten."""
    registry = check_registry_url(options.registry)
    file = KeyFile(Path(options.key_file) if options.key_file else default_path(registry))
    if file.load(registry) is not None:
        raise KeyFileError(
            f"{file.path} already contains a key. Move the file away to create a new agent."
        )
    identity = file.create(Identity(registry, PrivateKey.generate()))
    return {
        "key_file": str(file.path),
        "registry": registry,
        "jkt": identity.signer.public.thumbprint,
    }


async def register(options: argparse.Namespace) -> CommandResult:
    """Register, or show the registered agent again."""
    return _agent(await _client(options).register(_capabilities(options)))


async def request(options: argparse.Namespace) -> CommandResult:
    """Request a grant, and with --wait also wait for the decision."""
    client = _client(options)
    grant = await client.request_grant(
        options.service_provider,
        _capabilities(options),
        read_object(options.envelope),
        options.reason,
    )
    if options.wait and grant.status == "pending":
        # On stderr, so that stdout has only the answer.
        _tell(grant)
        grant = await client.wait_for_decision(grant)
    return {
        "grant_id": grant.grant_id,
        "status": grant.status,
        "approval_url": grant.approval_url if grant.status == "pending" else None,
        "claim_code": grant.claim_code if grant.status == "pending" else None,
        "valid_until": grant.valid_until,
        "deny_reason": grant.deny_reason,
    }


async def token(options: argparse.Namespace) -> CommandResult:
    """Print an access token. It is useless without the key, but keep it private."""
    action = read_action(options.action)
    client = _client(options)
    return {
        "access_token": await client.get_token(
            options.service_provider, options.grant, action=action
        )
    }


async def call(options: argparse.Namespace) -> CommandResult:
    """Call a service provider. The body is JSON if the strict reader accepts it, else text."""
    response = await _client(options).call(
        options.service_provider,
        options.method,
        options.url,
        action=read_action(options.action),
        json=_data(options.data),
        idempotency_key=options.idempotency_key,
    )
    # The charset of an answer may name any Python codec, even one that decodes no text.
    content: object = response.content.decode(errors="replace")
    with contextlib.suppress(EncodingError):
        content = read_json(response.content, max_bytes=len(response.content))
    return {"status": response.status_code, "body": content, "ok": response.is_success}


async def verify_receipt(options: argparse.Namespace) -> CommandResult:
    """Check an approval receipt against keys the caller trusts; nothing is fetched."""
    keys = read_key_set(read_file(options.trusted_keys))
    receipt = check_receipt(read_file(options.file), keys=keys, issuer=options.issuer)
    return {"ok": True, **summary(receipt)}


async def check_log(options: argparse.Namespace) -> CommandResult:
    """Check a folder with the audit log against keys the caller trusts; nothing is fetched."""
    return _checked(verify_log.check, options)


async def check_proof(options: argparse.Namespace) -> CommandResult:
    """Check one proof from the audit log against keys the caller trusts; nothing is fetched."""
    return _checked(verify_proof.check, options)


def _checked(
    check: Callable[[argparse.Namespace], CommandResult], options: argparse.Namespace
) -> CommandResult:
    try:
        return check(options)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(str(error)) from None


def _agent(agent: Agent) -> CommandResult:
    return {
        "agent_id": agent.agent_id,
        "status": agent.status,
        "claim_url": agent.claim_url,
        "claim_code": agent.claim_code,
        "expires_at": agent.expires_at,
    }


def _tell(grant: Grant) -> None:
    code = f" Claim code: {grant.claim_code}." if grant.claim_code else ""
    tell(f"Open {grant.approval_url} to decide.{code} Waiting …")


def _data(text: str | None) -> object:
    if text is None:
        return None
    try:
        value: object = json.loads(text)
    except ValueError:
        raise InvalidRequestError("--data must be JSON.") from None
    return value


COMMANDS: Final[
    Mapping[str, Callable[[argparse.Namespace], Coroutine[None, None, CommandResult]]]
] = {
    "keygen": keygen,
    "register": register,
    "request": request,
    "token": token,
    "call": call,
    "verify-receipt": verify_receipt,
    "verify-log": check_log,
    "verify-proof": check_proof,
    "witness-keygen": witness_keygen,
    "witness": witness,
}
