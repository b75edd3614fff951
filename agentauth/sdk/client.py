"""The agent's client: register, ask a human for a grant, sign calls to a service provider."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Final

import httpx

from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.envelope import EMPTY as EMPTY_ENVELOPE
from agentauth.protocol.envelope import Envelope
from agentauth.protocol.errors import CooldownActiveError, InvalidGrantError

from .addresses import (
    check_audience,
    check_registry_url,
    path_segment,
    within_audience,
    without_query,
)
from .agent_lifecycle import AgentLife
from .answers import Agent, Confirmation, Grant, ServiceProvider, results_of
from .argument_checks import check_capabilities, read_envelope
from .calls import send
from .choosing import choose_grant, find_same, is_usable, waits_for_human
from .ensuring import held, plan, with_time
from .errors import AmbiguousGrantError, GrantPendingError, NoGrantError
from .key_file import Identity, KeyFile, default_path
from .manifests import check_within
from .nonces import ServerNonce
from .registry_client import Registry, new_jti
from .tokens import Cache, Kept, Locks, looked_up, token_of
from .waiting import Callback, wait_for_confirmation, wait_for_grant

# The manifest must name an origin; `.invalid` (RFC 2606) says honestly that none was given.
UNSPECIFIED_ORIGIN: Final = "unspecified.invalid"
_PAGE: Final = 100
_PAGES: Final = 100


class AgentAuthClient:
    """One agent at one registry. The key file is read or created at the first call, not before.

    `key_file` has the agent's private key and manifest; by default one per registry in the user's
    configuration directory. With an `enrolment_code` the agent belongs to a human from the start;
    without, a human claims it on the approval page. `name` is what that human sees.
    """

    def __init__(
        self,
        registry_url: str,
        *,
        key_file: str | PathLike[str] | None = None,
        enrolment_code: str | None = None,
        name: str | None = None,
    ) -> None:
        self.registry_url = check_registry_url(registry_url)
        self.key_file = KeyFile(Path(key_file) if key_file else default_path(self.registry_url))
        self._name = name
        self._registry = Registry(self.registry_url)
        self._life = AgentLife(
            self._registry,
            self.key_file,
            name=name,
            enrolment_code=enrolment_code,
            on_change=self._forget,
        )
        self._agent: Agent | None = None
        self._tokens = Cache[str]()
        self._grants = Cache[list[Grant]]()
        self._providers = Cache[ServiceProvider]()
        self._locks = Locks()
        self._nonces: dict[str, ServerNonce] = {}

    # ---- who the agent is

    def identity(self) -> Identity:
        """The stored identity; creates a key if there is none. Raises KeyFileError."""
        return self._life.identity()

    async def register(
        self,
        capabilities: Sequence[Capability] = (),
        *,
        description: str = "",
        model_origin: str = UNSPECIFIED_ORIGIN,
    ) -> Agent:
        """Register the agent, or find it again; with claim link and code while it is unclaimed.

        The first time, `capabilities` are all it may ever ask for, until `renew_manifest` changes
        that; later ones must lie within it. `model_origin` is the host name of the model's maker,
        shown to the human as a claim. Raises ManifestError beyond the manifest, and the registry's
        refusals.
        """
        self._agent = await self._life.register(capabilities, description, model_origin)
        return self._agent

    async def renew_manifest(
        self,
        capabilities: Sequence[Capability] | None = None,
        *,
        description: str | None = None,
        model_origin: str | None = None,
    ) -> Agent:
        """Renew the manifest for a year from now; what you leave out stays unchanged.

        A plain renewal happens automatically, before half of that year is over. `capabilities` are
        all the agent may ask for from now on: grants they no longer cover are suspended until a
        human signs again. Raises ManifestError, and the registry's refusals.
        """
        return await self._life.renew_manifest(capabilities, description, model_origin)

    async def rotate_key(self) -> Agent:
        """Change to a new key. The old key is refused for ever; the SDK gets new tokens itself.

        Grants with `delete` or `transact` are suspended until a human signs again. A crash at any
        moment is safe: the next call finishes the change. Raises AgentInactiveError unless the
        agent is active.
        """
        return await self._life.rotate_key()

    # ---- grants

    async def ensure_grant(
        self,
        service: str,
        capabilities: Sequence[Capability],
        *,
        envelope: Envelope | Mapping[str, object] | None = None,
        reason: str = "",
        ask_again: bool = False,
    ) -> Grant:
        """A grant that covers `capabilities` at a service provider (id or slug), or a request.

        Returns an approved grant if approved grants cover all of them: the one that covers the
        most. Otherwise returns what a person must decide first, with `approval_url`: a request
        made before, also by an earlier process, or a new one for what is missing alone. After
        `wait_for_decision`, call it again if several requests may be open. `envelope` are the
        limits to ask for; a grant that was requested with tighter limits does not count. None
        accepts any grant's limits. Raises NoGrantError with reason `denied` or `narrowed` if a
        person already said no, unless `ask_again`; CooldownActiveError says when the registry takes
        a request again. Raises ManifestError beyond the manifest, and the registry's refusals.
        """
        needed = check_capabilities(capabilities)
        limits = None if envelope is None else read_envelope(envelope)
        async with self._locks.of(service):
            if self.identity().agent_id is not None:
                provider = await self.service_provider(service)
                known = await self._grants.get((provider.id,), self._lookup(provider))
                if (grant := held(known, needed, limits)) is not None:
                    return grant
            await self._known_to_cover(needed)
            provider = await self.service_provider(service)
            self._grants.forget(provider.id)
            known = await self._grants.get((provider.id,), self._lookup(provider))
            planned = plan(known, needed, limits, ask_again=ask_again)
            if planned.grant is not None:
                if waits_for_human(planned.grant):
                    return await self._with_link(planned.grant)
                return planned.grant
            try:
                return await self._ask(provider, planned.missing, limits or EMPTY_ENVELOPE, reason)
            except CooldownActiveError as error:
                raise with_time(error) from None

    async def request_grant(
        self,
        service_provider_id: str,
        capabilities: Sequence[Capability],
        envelope: Envelope | Mapping[str, object] | None = None,
        reason: str = "",
    ) -> Grant:
        """Ask a human for `capabilities` at a service provider (id or slug), within `envelope`.

        If a grant with the same capabilities (in any order) and envelope was requested before, also
        in an earlier process, and is approved, waiting or suspended, it is returned instead: the
        human is not asked twice. Registers first if needed. Show the human the grant's
        `approval_url`, if any, and its `claim_code`. Raises ManifestError beyond the manifest, and
        the registry's refusals.
        """
        needed = check_capabilities(capabilities)
        agent = await self._known_to_cover(needed)
        limits = read_envelope(envelope)
        provider = await self.service_provider(service_provider_id)
        same = find_same(await self._grants_at(provider), needed, limits)
        if same is not None:
            code = agent.claim_code if same.status == "pending" else None
            return replace(same, claim_code=code)
        return await self._ask(provider, needed, limits, reason)

    async def _known_to_cover(self, capabilities: Sequence[Capability]) -> Agent:
        """Register if needed. Raises ManifestError beyond the manifest."""
        # The claim link of an unclaimed agent lives 1 h: registering again opens the next one.
        if self._agent is None or self._agent.claim_url is not None:
            await self.register(capabilities)
        assert self._agent is not None
        known = self._life.manifest
        assert known is not None
        check_within(known, name=self._name, capabilities=capabilities)
        return self._agent

    async def _ask(
        self,
        provider: ServiceProvider,
        capabilities: Sequence[Capability],
        envelope: Envelope,
        reason: str,
    ) -> Grant:
        assert self._agent is not None
        body: dict[str, object] = {
            "service_provider": provider.id,
            "capabilities": [capability.to_json() for capability in capabilities],
            "envelope": envelope.to_json(),
            "reason": reason,
        }
        answer = await self._life.post("/v1/grants", body)
        self._grants.forget()
        return Grant.of(answer, service_provider=provider.id, claim_code=self._agent.claim_code)

    async def wait_for_decision(
        self, grant: Grant | str, *, on_pending: Callback[Grant] | None = None
    ) -> Grant:
        """Wait until a human has decided, without a time limit; `status` is the outcome.

        `on_pending`, a function or coroutine function, gets the pending grant with its
        `approval_url` and `claim_code`: once, and again whenever these change. Also waits for a
        suspended grant that needs a new signature. The caller sets a limit with
        `async with asyncio.timeout(600): …`, and may go on waiting later, also in another process
        that knows the grant's id. Raises the registry's refusals.
        """
        grant_id = grant if isinstance(grant, str) else grant.grant_id
        code = None if isinstance(grant, str) else grant.claim_code
        decided = await wait_for_grant(
            self._life, grant_id, with_link=self._with_link, on_pending=on_pending
        )
        # The cached choice of grant is older than this decision.
        self._forget()
        return replace(decided, claim_code=code)

    async def get_grant(self, grant_id: str) -> Grant:
        """The grant's current state."""
        return Grant.of(await self._life.get(f"/v1/grants/{path_segment(grant_id)}"))

    async def withdraw_grant(self, grant: Grant | str) -> None:
        """Withdraw a pending request. Raises InvalidStateError once it was decided."""
        await self._end(grant, "withdraw")

    async def revoke_grant(self, grant: Grant | str) -> None:
        """Revoke an approved grant permanently; its tokens are refused from now on."""
        await self._end(grant, "revoke")

    async def wait_for_confirmation(
        self,
        confirmation_id: str,
        *,
        on_pending: Callback[Confirmation] | None = None,
    ) -> Confirmation:
        """Wait until a human has confirmed or denied one transaction, or it expired.

        `on_pending` gets the pending confirmation with its `approval_url`, once.
        """
        return await wait_for_confirmation(self._life, confirmation_id, on_pending=on_pending)

    # ---- tokens and calls

    async def get_token(
        self, service_provider_id: str, grant_id: str | None = None, *, action: Action | None = None
    ) -> str:
        """An access token for a service provider, cached and renewed before it expires.

        For the grant `grant_id`, else one that covers `action`; of several, the one that ends last.
        Without either, the only grant, or the one that covers all that the others do. Raises
        GrantPendingError with `approval_url` and `claim_code` while a human must decide,
        NoGrantError if none is usable, AmbiguousGrantError if the grants differ and nothing says
        which.
        """
        if grant_id is not None:
            return await self._token(service_provider_id, grant_id)
        grant = await self._choose(service_provider_id, action)
        try:
            return await self._token(service_provider_id, grant.grant_id)
        except InvalidGrantError:
            # The grant ended or was suspended after the lookup.
            self._grants.forget(grant.service_provider)
        grant = await self._choose(service_provider_id, action)
        return await self._token(service_provider_id, grant.grant_id)

    def forget_tokens(self, service_provider_id: str) -> None:
        """Drop cached tokens: after a grant changed, the next call gets a token of its version."""
        self._tokens.forget(service_provider_id)
        self._grants.forget()

    async def authenticate_headers(
        self,
        service_provider_id: str,
        method: str,
        url: str,
        *,
        action: Action | None = None,
        nonce: str | None = None,
    ) -> dict[str, str]:
        """The two headers that authenticate one request, valid for 60 s and one use.

        `url` is absolute, or a path at the audience's origin; the query is not signed. `action` is
        what the request does, as the service provider will ask verify; it selects among several
        grants. `nonce` is the `DPoP-Nonce` of its last answer; by default the one that `call` got
        last. Raises AudienceError outside the audience, and as `get_token`.
        """
        provider = await self.service_provider(service_provider_id)
        absolute = within_audience(url, check_audience(provider.audience))
        token = await self.get_token(service_provider_id, action=action)
        proof = make_proof(
            self._life.signer,
            method=method,
            url=without_query(absolute),
            iat=int(time.time()),
            jti=new_jti(),
            access_token=token,
            nonce=nonce or self._nonce_of(provider).latest,
        )
        return {"Authorization": f"DPoP {token}", "DPoP": proof}

    async def call(
        self,
        service_provider_id: str,
        method: str,
        url: str,
        *,
        action: Action | None = None,
        json: Any = None,
        idempotency_key: str | None = None,
    ) -> httpx.Response:
        """Call a service provider and return its answer, whatever the status. Follows no redirect.

        `action` selects the grant, as for `authenticate_headers`. Lost answers, 503 and a short
        `Retry-After` are retried with a new proof and the same Idempotency-Key, so nothing is done
        twice; a requested nonce is sent at once. Raises TemporarilyUnavailableError if no answer
        comes, or none that can be decompressed. The answer may have any size while each part comes
        within 10 s: to limit it, use `asyncio.timeout`, or `authenticate_headers` with another HTTP
        client.
        """
        provider = await self.service_provider(service_provider_id)
        absolute = within_audience(url, check_audience(provider.audience))

        async def sign(nonce: str | None, *, fresh_token: bool) -> dict[str, str]:
            if fresh_token:
                self.forget_tokens(service_provider_id)
            return await self.authenticate_headers(
                service_provider_id, method, absolute, action=action, nonce=nonce
            )

        return await send(
            sign,
            method,
            absolute,
            json=json,
            idempotency_key=idempotency_key,
            server_nonce=self._nonce_of(provider),
            transport=self._registry.transport,
        )

    # ---- what the registry knows

    async def service_provider(self, service_provider_id: str) -> ServiceProvider:
        """A service provider's audience and allow-list, cached for five minutes."""
        path = f"/v1/service-providers/{path_segment(service_provider_id)}"

        async def ask() -> Kept[ServiceProvider]:
            return looked_up(ServiceProvider.of(await self._life.get(path)))

        return await self._providers.get((service_provider_id,), ask)

    async def audit_events(self) -> list[Mapping[str, object]]:
        """The audit events about this agent in log order, those not yet numbered last."""
        return await self._pages("/v1/audit/events")

    async def list_grants(self) -> list[Grant]:
        """Every grant this agent ever requested, oldest first."""
        grants = [Grant.of(body) for body in await self._pages("/v1/grants")]
        # Ids are UUIDv7, so they sort by time of request.
        return sorted(grants, key=lambda grant: grant.grant_id)

    # ---- inside

    async def _pages(self, path: str) -> list[Mapping[str, object]]:
        rows: list[Mapping[str, object]] = []
        after: str | None = None
        for _ in range(_PAGES):
            answer = await self._life.get(
                path, {"limit": _PAGE} | ({"after": after} if after else {})
            )
            rows += results_of(answer)
            following = answer.get("next")
            after = following if isinstance(following, str) and following else None
            if after is None:
                break
        return rows

    async def _end(self, grant: Grant | str, how: str) -> None:
        grant_id = grant if isinstance(grant, str) else grant.grant_id
        await self._life.post(f"/v1/grants/{path_segment(grant_id)}/{how}", {})
        self._forget()

    def _forget(self) -> None:
        self._tokens.forget()
        self._grants.forget()

    async def _token(self, service_provider_id: str, grant_id: str) -> str:
        return await self._tokens.get(
            (service_provider_id, grant_id), lambda: self._issue(grant_id)
        )

    async def _issue(self, grant_id: str) -> Kept[str]:
        asked_at = time.time()
        try:
            answer = await self._life.post("/v1/tokens", {"grant_id": grant_id})
        except InvalidGrantError:
            current = await self.get_grant(grant_id)
            if waits_for_human(current):
                raise await self._pending(current) from None
            raise
        return token_of(answer, asked_at=asked_at)

    async def _grants_at(self, provider: ServiceProvider) -> list[Grant]:
        return [
            grant for grant in await self.list_grants() if grant.service_provider == provider.id
        ]

    def _lookup(self, provider: ServiceProvider) -> Callable[[], Awaitable[Kept[list[Grant]]]]:
        async def ask() -> Kept[list[Grant]]:
            return looked_up(await self._grants_at(provider))

        return ask

    async def _choose(self, service_provider_id: str, action: Action | None) -> Grant:
        """The usable grant for the action among cached grants, else among the registry's."""
        if self.identity().agent_id is None:
            raise NoGrantError(
                "This agent has not asked for anything yet. Call request_grant first."
            )
        provider = await self.service_provider(service_provider_id)
        asked = False

        look_up = self._lookup(provider)

        async def ask() -> Kept[list[Grant]]:
            nonlocal asked
            asked = True
            return await look_up()

        while True:
            known = await self._grants.get((provider.id,), ask)
            try:
                grant = choose_grant(known, action, provider, called=service_provider_id)
                if is_usable(grant):
                    return grant
                raise await self._pending(grant)
            except (AmbiguousGrantError, GrantPendingError, NoGrantError):
                self._grants.forget(provider.id)
                if asked:
                    raise

    async def _with_link(self, grant: Grant) -> Grant:
        """The grant with the present link and claim code, which registering renews."""
        agent = await self.register()
        url = grant.approval_url or f"{self.registry_url}/approvals/{grant.grant_id}/"
        if agent.claim_url:
            url = f"{agent.claim_url}?grant={grant.grant_id}"
        return replace(grant, approval_url=url, claim_code=agent.claim_code)

    async def _pending(self, grant: Grant) -> GrantPendingError:
        """The error that says where a human decides."""
        shown = await self._with_link(grant)
        assert shown.approval_url is not None
        # Without the code: exceptions reach logs, where the link alone must not be enough.
        hint = (
            " and to type this agent's claim code (register shows it)" if shown.claim_code else ""
        )
        return GrantPendingError(
            f"A human has yet to decide. Ask them to open {shown.approval_url}{hint}",
            grant_id=grant.grant_id,
            approval_url=shown.approval_url,
            claim_code=shown.claim_code,
        )

    def _nonce_of(self, provider: ServiceProvider) -> ServerNonce:
        """Per audience, not per origin: two service providers may share an origin."""
        return self._nonces.setdefault(provider.audience, ServerNonce())
