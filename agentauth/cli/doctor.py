"""`agentauth doctor`: what is wrong with this installation, and what to do about it.

Each check is one finding; a later check that needs an earlier one is left out if that failed.
Nothing is changed, and no key is created.
"""

import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import httpx

from agentauth.protocol.dpop import WINDOW_SECONDS
from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from agentauth.sdk.bounded_http import ask
from agentauth.sdk.identity import Identity
from agentauth.sdk.key_file import KeyFile
from agentauth.sdk.own_manifest import is_due, read_manifest
from agentauth.sdk.registry_answers import optional
from agentauth.sdk.registry_http import TIMEOUT_SECONDS, open_client, registry_at
from agentauth.sdk.url_checks import check_registry_url

from .agent_commands import ask_about
from .agent_options import Connection
from .result import DONE, REFUSED, UNAVAILABLE, Outcome, Table

# Seconds. `Date` is cut to whole seconds, and an answer takes some time: less is not measurable.
CLOCK_MARGIN: Final = 5
_DISCOVERY: Final = "/.well-known/agentauth"
_PACKAGES: Final = ("agentauth-sdk", "httpx", "cryptography", "pynacl")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: `ok`, a `note` that needs nothing done, or a `problem`."""

    check: str
    state: str
    detail: str


async def doctor(connection: Connection) -> Outcome:
    """Check versions, address, reachability, clock, key store, manifest and agent."""
    findings = [_versions()]
    code = DONE
    try:
        registry = check_registry_url(connection.registry)
    except AgentAuthError as error:
        findings.append(Finding("address", "problem", error.description))
        return _outcome(findings, code)
    findings.append(Finding("address", "ok", registry))
    reached = False
    try:
        found = list(await _registry(connection, registry))
        findings += found
        reached = all(finding.state != "problem" for finding in found)
    except TemporarilyUnavailableError as error:
        findings.append(Finding("reachability", "problem", error.description))
        code = UNAVAILABLE
    stored, identity = _key_store(connection, registry)
    findings += stored
    if identity is not None:
        findings += _manifest(identity)
        if reached and identity.agent_id is not None:
            findings.append(await _agent(connection, identity))
    return _outcome(findings, code)


def _outcome(findings: list[Finding], code: int) -> Outcome:
    ok = all(finding.state != "problem" for finding in findings)
    rows = [
        {"check": finding.check, "state": finding.state, "detail": finding.detail}
        for finding in findings
    ]
    table = Table(("check", "state", "detail"), rows)
    return Outcome({"ok": ok, "checks": rows}, code or (DONE if ok else REFUSED), table)


def _versions() -> Finding:
    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            # A checkout has no metadata.
            found.append(f"{name} is not installed as a package")
    return Finding("versions", "ok", ", ".join(found))


async def _registry(connection: Connection, registry: str) -> list[Finding]:
    """Ask the registry for its description. Raises TemporarilyUnavailableError."""
    transport = connection.client()._registry.transport  # noqa: SLF001 — the seam of tests
    async with open_client(registry, transport) as client:
        before = time.time()
        response = await ask(
            client,
            "GET",
            registry + _DISCOVERY,
            who=registry_at(registry),
            seconds=TIMEOUT_SECONDS,
        )
    return [_identity(registry, response), *_clock(response, (before + time.time()) / 2)]


def _identity(registry: str, response: httpx.Response) -> Finding:
    """Is it the registry, under its own name? Proofs are signed for exactly one address."""
    if response.is_redirect:
        there = response.headers.get("Location", "")[:200]
        detail = f"{registry} redirects to {there!r}, which is never followed. Use the registry's"
        return Finding("reachability", "problem", f"{detail} own address.")
    try:
        issuer = optional(read_object(response.content), "issuer") if response.is_success else None
    except AgentAuthError:
        issuer = None
    if issuer is None:
        detail = (
            f"{registry} answers with status {response.status_code}, but not as a registry "
            f"({_DISCOVERY}). Check the address."
        )
        return Finding("reachability", "problem", detail)
    if issuer != registry:
        detail = f"This registry calls itself {issuer}. Use exactly that address."
        return Finding("reachability", "problem", detail)
    return Finding("reachability", "ok", "The registry answers.")


def _clock(response: httpx.Response, now: float) -> Iterator[Finding]:
    try:
        there = parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        yield Finding("clock", "note", "The answer has no Date header to compare with.")
        return
    # A cut-off second is half a second on average.
    off = now - (there + 0.5)
    direction = "ahead of" if off > 0 else "behind"
    if abs(off) <= CLOCK_MARGIN:
        yield Finding("clock", "ok", f"Within {CLOCK_MARGIN} s of the registry's.")
    elif abs(off) <= WINDOW_SECONDS / 2:
        detail = f"This clock is {abs(off):.0f} s {direction} the registry's."
        yield Finding("clock", "note", detail)
    else:
        detail = (
            f"This clock is {abs(off):.0f} s {direction} the registry's, and proofs are accepted "
            f"within {WINDOW_SECONDS} s. Set this machine's clock, for instance: "
            "timedatectl set-ntp true"
        )
        yield Finding("clock", "problem", detail)


def _key_store(connection: Connection, registry: str) -> tuple[list[Finding], Identity | None]:
    store = connection.stored()
    check = "key file" if isinstance(store, KeyFile) else "key store"
    try:
        identity = store.load(registry)
    except AgentAuthError as error:
        return [Finding(check, "problem", error.description)], None
    if identity is None:
        detail = f"There is no key in {store.name} yet. `agentauth register` creates one."
        return [Finding(check, "note", detail)], None
    if not isinstance(store, KeyFile):
        return [Finding(check, "ok", f"The key is in {store.name}.")], identity
    if not os.access(store.path.parent, os.W_OK):
        detail = f"{store.path.parent} is not writable, so the manifest cannot be renewed."
        return [Finding(check, "problem", detail)], identity
    return [Finding(check, "ok", f"{store.name}, readable by its owner alone.")], identity


def _manifest(identity: Identity) -> Iterator[Finding]:
    if identity.manifest is None:
        yield Finding("manifest", "note", "This agent is not registered: agentauth register.")
        return
    try:
        manifest = read_manifest(identity.manifest, registry=identity.registry)
    except AgentAuthError as error:
        yield Finding("manifest", "problem", error.description)
        return
    ends = time.strftime("%d %B %Y %H:%M UTC", time.gmtime(manifest.expires_at))
    if manifest.expires_at <= time.time():
        detail = f"It expired on {ends}. Renew it: agentauth register."
        yield Finding("manifest", "problem", detail)
    elif is_due(manifest, now=time.time()):
        yield Finding("manifest", "note", f"Valid until {ends}; the next call renews it.")
    else:
        yield Finding("manifest", "ok", f"Valid until {ends}.")


async def _agent(connection: Connection, identity: Identity) -> Finding:
    """A signed call, which needs the clock, the address and the key to be right."""
    try:
        told: Mapping[str, object] = await ask_about(connection, identity)
    except AgentAuthError as error:
        return Finding("agent", "problem", error.description)
    status = optional(told, "status") or "unknown"
    if status == "active":
        return Finding("agent", "ok", f"{identity.agent_id} is active.")
    if status == "unclaimed":
        detail = f"{identity.agent_id} waits for its owner: `agentauth register` shows the link."
        return Finding("agent", "note", detail)
    return Finding("agent", "problem", f"{identity.agent_id} is {status}.")
