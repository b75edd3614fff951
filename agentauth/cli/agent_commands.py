"""The commands of an agent: parsed arguments in, one flat record out."""

import contextlib
from collections.abc import Mapping, Sequence

import httpx

from agentauth.protocol.capability import parse_capability
from agentauth.protocol.encoding import read_json, read_object
from agentauth.protocol.errors import AgentAuthError, EncodingError
from agentauth.sdk.agent_registry_client import Registry
from agentauth.sdk.client import AgentAuthClient
from agentauth.sdk.errors import KeyFileError
from agentauth.sdk.grant_choice import waits_for_human
from agentauth.sdk.identity import Identity
from agentauth.sdk.key_file import KeyFile
from agentauth.sdk.key_store import KEY_VARIABLE, EnvironmentStore, KeyStore
from agentauth.sdk.own_manifest import read_manifest
from agentauth.sdk.registry_answers import Grant, optional
from agentauth.sdk.url_checks import check_registry_url

from .agent_options import Connection
from .capability_arguments import read_action, read_capability, read_data
from .pending_display import await_with_limit, show_pending
from .result import DONE, REFUSED, UNAVAILABLE, WAITING, CommandResult, Outcome, Table, UsageError

_SERVER_ERROR = 500


async def keygen(connection: Connection) -> Outcome:
    """Create the key. Raises KeyFileError if there is one: a key is never overwritten."""
    registry = check_registry_url(connection.registry)
    store = connection.stored()
    if isinstance(store, EnvironmentStore):
        raise UsageError(
            f"keygen cannot set {KEY_VARIABLE}. Make a key with `openssl genpkey -algorithm "
            "ed25519`, and set the variable to it."
        )
    if store.load(registry) is not None:
        away = "Move the file" if isinstance(store, KeyFile) else f"Move its entry for {registry}"
        raise KeyFileError(f"A key is already in {store.name}. {away} away to create another.")
    identity = store.create(store.make(registry))
    return Outcome(
        {
            **_place(store),
            "registry": registry,
            "jkt": identity.signer.public.thumbprint,
        }
    )


async def register(
    connection: Connection,
    *,
    name: str | None,
    enrolment_code: str | None,
    capabilities: Sequence[str],
    renew: bool,
) -> Outcome:
    """Register, or show the registered agent again; `renew` declares other capabilities."""
    client = connection.client(name=name, enrolment_code=enrolment_code)
    declared = [read_capability(text) for text in capabilities]
    if renew:
        agent = await client.renew_manifest(declared or None)
    else:
        agent = await client.register(declared)
    answer: CommandResult = {
        "agent_id": agent.agent_id,
        "status": agent.status,
        "claim_url": agent.claim_url,
        "claim_code": agent.claim_code,
        "expires_at": agent.expires_at,
    }
    if isinstance(client.keys, EnvironmentStore):
        # Only the user can keep it for the next command.
        answer = {**answer, "manifest": client.identity().manifest}
    return Outcome(answer)


async def request(
    connection: Connection,
    service_provider: str,
    *,
    name: str | None,
    enrolment_code: str | None,
    capabilities: Sequence[str],
    envelope: str | None,
    reason: str,
    ask_again: bool,
    wait: bool,
    timeout: float | None,  # noqa: ASYNC109 — the option --timeout
) -> Outcome:
    """A grant that covers the capabilities; otherwise, ask a person for what is missing."""
    if timeout is not None and not wait:
        raise UsageError("--timeout limits how long --wait waits: add --wait, or leave it out.")
    client = connection.client(name=name, enrolment_code=enrolment_code)
    grant = await client.ensure_grant(
        service_provider,
        [read_capability(text) for text in capabilities],
        envelope=None if envelope is None else read_object(envelope),
        reason=reason,
        ask_again=ask_again,
    )
    if waits_for_human(grant) and not wait:
        return Outcome(_grant(grant))
    return await _decision(client, grant, timeout)


async def wait_for(
    connection: Connection,
    grant_id: str | None,
    *,
    timeout: float | None,  # noqa: ASYNC109 — the option --timeout
) -> Outcome:
    """Wait for the decision about a grant: without an id, about the one that is waiting."""
    client = connection.client()
    if grant_id is None:
        waiting = [grant for grant in await client.list_grants() if waits_for_human(grant)]
        if len(waiting) != 1:
            raise UsageError(
                f"{len(waiting)} grants wait for a decision. `agentauth grants` lists them; name "
                "one: agentauth wait GRANT_ID."
            )
        grant_id = waiting[0].grant_id
    return await _decision(client, await client.get_grant(grant_id), timeout)


async def _decision(client: AgentAuthClient, grant: Grant, seconds: float | None) -> Outcome:
    """Show the link, and wait until a person has decided."""
    if waits_for_human(grant):
        waited = client.wait_for_decision(grant, on_pending=show_pending)
        grant = await await_with_limit(
            waited,
            seconds,
            what="decision",
            next_step=f"Run `agentauth wait {grant.grant_id}` to keep waiting.",
        )
    return Outcome(_grant(grant), DONE if grant.status == "approved" else REFUSED)


async def token(
    connection: Connection, service_provider: str, *, grant: str | None, action: str | None
) -> Outcome:
    """Print an access token. It is useless without the key, but keep it private."""
    client = connection.client()
    issued = await client.get_token(service_provider, grant, action=read_action(action))
    return Outcome({"access_token": issued})


async def call(
    connection: Connection,
    service_provider: str,
    method: str,
    url: str,
    *,
    action: str | None,
    data: str | None,
    idempotency_key: str | None,
    max_bytes: int,
    wait: bool,
    timeout: float | None,  # noqa: ASYNC109 — the option --timeout
) -> Outcome:
    """Call a service provider. The body is JSON if the strict reader accepts it, else text.

    With `wait`, it shows what a person must decide first, and waits: about the grant, or about this
    one call, which is then repeated under the same Idempotency-Key.
    """
    client = connection.client()
    response = await await_with_limit(
        client.call(
            service_provider,
            method.upper(),
            url,
            action=read_action(action),
            json=read_data(data),
            idempotency_key=idempotency_key,
            on_pending=show_pending if wait else None,
            on_step_up=show_pending if wait else None,
            max_bytes=max_bytes,
        ),
        timeout,
        what="answer",
        next_step="The service provider may have acted: repeat the call with the same "
        "--idempotency-key, or check first.",
    )
    return Outcome(
        {"status": response.status_code, "body": _content(response), "ok": response.is_success},
        _code(response),
    )


async def grants(connection: Connection, *, status: str | None) -> Outcome:
    """Every grant the agent ever requested, oldest first."""
    found = [
        {
            "grant_id": grant.grant_id,
            "status": grant.status,
            "service_provider": _provider(grant),
            "capabilities": _labels(grant),
            "valid_until": grant.valid_until,
            "approval_url": grant.approval_url,
        }
        for grant in await connection.client().list_grants()
        if status in {None, grant.status}
    ]
    columns = ("grant_id", "status", "service_provider", "capabilities", "valid_until")
    return Outcome({"grants": found}, table=Table(columns, found))


async def revoke(connection: Connection, grant_id: str) -> Outcome:
    """End a grant permanently: revoke an approved one, withdraw a pending one."""
    client = connection.client()
    grant = await client.get_grant(grant_id)
    if grant.status == "pending":
        await client.withdraw_grant(grant)
    else:
        await client.revoke_grant(grant)
    return Outcome(_grant(await client.get_grant(grant_id)))


async def whoami(connection: Connection, *, offline: bool) -> Outcome:
    """The agent of the key store, and unless `offline` its state at the registry.

    Creates no key. Raises KeyFileError if there is none.
    """
    registry = check_registry_url(connection.registry)
    store = connection.stored()
    identity = store.load(registry)
    if identity is None:
        raise KeyFileError(f"There is no key in {store.name}. Make one: agentauth keygen.")
    known = identity.manifest and read_manifest(identity.manifest, registry=registry)
    answer: dict[str, object] = {
        **_place(store),
        "registry": registry,
        "jkt": identity.signer.public.thumbprint,
        "agent_id": identity.agent_id,
    }
    if known:
        answer["name"] = known.name
        answer["capabilities"] = [capability.label for capability in known.capabilities]
    if identity.agent_id is None:
        return Outcome(answer | {"status": "not registered"})
    if not offline:
        told = await ask_about(connection, identity)
        answer |= {name: optional(told, name) for name in ("status", "expires_at")}
    return Outcome(answer)


async def ask_about(connection: Connection, identity: Identity) -> Mapping[str, object]:
    """What the registry knows of the agent, asked with its key. Raises AgentAuthError."""
    registry = Registry(identity.registry, connection.client()._registry.transport)  # noqa: SLF001 — the seam of tests
    return await registry.get(identity.signer, "/v1/agents/me")


# ---- the members of an answer


def _place(store: KeyStore) -> CommandResult:
    """Where the key is: the file's path is a member of its own."""
    return {"key_file" if isinstance(store, KeyFile) else "key_store": store.name}


def _grant(grant: Grant) -> CommandResult:
    waits = waits_for_human(grant)
    return {
        "grant_id": grant.grant_id,
        "status": grant.status,
        "approval_url": grant.approval_url if waits else None,
        "claim_code": grant.claim_code if waits else None,
        "valid_until": grant.valid_until,
        "deny_reason": grant.deny_reason,
    }


def _provider(grant: Grant) -> str:
    named = grant.answer.get("service_provider")
    slug = named.get("slug") if isinstance(named, Mapping) else None
    return slug if isinstance(slug, str) else grant.service_provider


def _labels(grant: Grant) -> list[str]:
    """The granted capabilities, or the requested ones while the request waits for a person."""
    terms = grant.answer.get("granted") or grant.answer.get("requested")
    rows = terms.get("capabilities") if isinstance(terms, Mapping) else None
    return [_label(row) for row in rows] if isinstance(rows, list) else []


def _label(row: object) -> str:
    try:
        return parse_capability(row).label
    except AgentAuthError:
        # A kind that this version does not know.
        return "?"


def _content(response: httpx.Response) -> object:
    with contextlib.suppress(EncodingError):
        return read_json(response.content, max_bytes=len(response.content))
    # The charset of an answer may name any Python codec, even one that decodes no text.
    return response.content.decode(errors="replace")


def _code(response: httpx.Response) -> int:
    if response.is_success:
        return DONE
    if response.status_code >= _SERVER_ERROR:
        return UNAVAILABLE
    body = _content(response) if response.status_code == httpx.codes.FORBIDDEN else None
    waits = isinstance(body, Mapping) and body.get("error") == "step_up_required"
    return WAITING if waits else REFUSED
