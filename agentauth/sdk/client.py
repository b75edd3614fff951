"""The agent's client: register, ask a human for a grant, and sign calls to a service provider with it."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Final

import httpx

from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.envelope import Envelope, parse_envelope
from agentauth.protocol.errors import InvalidGrantError

from .addresses import check_audience, check_registry_url, path_segment, within_audience, without_query
from .answers import Agent, Confirmation, Grant, ServiceProvider, results_of
from .calls import send
from .choosing import choose_grant, find_same, is_usable, waits_for_human
from .errors import AmbiguousGrantError, GrantPendingError, NoGrantError
from .key_file import Identity, KeyFile, default_path
from .life import AgentLife
from .manifests import check_within
from .nonces import ServerNonce
from .tokens import Cache, Kept, looked_up, token_of
from .wire import Registry, new_jti

POLL_SECONDS: Final = 25
# The manifest must name an origin; `.invalid` (RFC 2606) says honestly that none was given.
UNSPECIFIED_ORIGIN: Final = "unspecified.invalid"
_PAGE: Final = 100
_PAGES: Final = 100


class AgentAuthClient:
    """One agent at one registry. Making it does nothing yet: the key file is read or made at the first call.

    `key_file` holds the agent's private key and manifest, by default one for each registry under the user's
    configuration directory. With an `enrolment_code` the agent belongs to a human from the start; without, a human
    claims it on the approval page. `name` is what that human sees.
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
        self._nonces: dict[str, ServerNonce] = {}

    # ---- who the agent is

    def identity(self) -> Identity:
        """The stored identity; a new key is made where there is none. Raises KeyFileError."""
        return self._life.identity()

    async def register(
        self,
        capabilities: Sequence[Capability] = (),
        *,
        description: str = "",
        model_origin: str = UNSPECIFIED_ORIGIN,
    ) -> Agent:
        """Make the agent known to the registry, or find it again; its claim link and code while unclaimed.

        The first time `capabilities` are all it may ever ask for, until `renew_manifest` says otherwise; later they
        must lie within that. `model_origin` is the host name of who made the model behind the agent, which the human
        sees as a claim. Raises ManifestError where they do not, and what the registry refuses.
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

        A renewal alone happens by itself, before half of that year is over. `capabilities` are all the agent may ask
        for from now on: grants they no longer cover are suspended until a human signs again, all others go on.
        Raises ManifestError, and what the registry refuses.
        """
        return await self._life.renew_manifest(capabilities, description, model_origin)

    async def rotate_key(self) -> Agent:
        """Change to a new key. The old key is refused for ever; the SDK gets new tokens by itself.

        Grants with `delete` or `transact` are suspended until a human signs again. A crash at any moment leaves a key
        file that the agent goes on with: the next call finishes the change. Raises AgentInactiveError unless the
        agent is active.
        """
        return await self._life.rotate_key()

    # ---- grants

    async def request_grant(
        self,
        service_provider_id: str,
        capabilities: Sequence[Capability],
        envelope: Envelope | Mapping[str, object] | None = None,
        reason: str = "",
    ) -> Grant:
        """Ask a human for `capabilities` at a service provider (its id or slug), within the limits of `envelope`.

        A grant that was asked for with the same capabilities (in any order) and envelope is returned instead, in this
        process or an earlier one, for as long as it is approved, waits for a human or is suspended: they are not asked
        twice. Registers first where needed. Show the human the grant's `approval_url`, where it has one, and its
        `claim_code`. Raises ManifestError for capabilities beyond the manifest, and what the registry refuses.
        """
        # The claim link of an unclaimed agent lives an hour: registering again opens the next one.
        if self._agent is None or self._agent.claim_url is not None:
            await self.register(capabilities)
        assert self._agent is not None
        known = self._life.manifest
        assert known is not None
        check_within(known, name=self._name, capabilities=capabilities)
        limits = envelope if isinstance(envelope, Envelope) else parse_envelope(dict(envelope or {}))
        provider = await self.service_provider(service_provider_id)
        same = find_same(await self._grants_at(provider), capabilities, limits)
        if same is not None:
            code = self._agent.claim_code if same.status == "pending" else None
            return replace(same, claim_code=code)
        body: dict[str, object] = {
            "service_provider": provider.id,
            "capabilities": [capability.to_json() for capability in capabilities],
            "envelope": limits.to_json(),
            "reason": reason,
        }
        answer = await self._life.post("/v1/grants", body)
        self._grants.forget()
        return Grant.of(answer, service_provider=provider.id, claim_code=self._agent.claim_code)

    async def wait_for_decision(self, grant: Grant | str) -> Grant:
        """Wait until a human has decided, however long they take; `status` says what became of the grant.

        That is also for a grant that is suspended until they sign again. A limit is the caller's:
        `async with asyncio.timeout(600): …`. Raises what the registry refuses.
        """
        grant_id = grant if isinstance(grant, str) else grant.grant_id
        code = None if isinstance(grant, str) else grant.claim_code
        path = f"/v1/grants/{path_segment(grant_id)}"
        while True:
            asked_at = time.monotonic()
            current = Grant.of(await self._life.get(path, wait=POLL_SECONDS), claim_code=code)
            if not waits_for_human(current):
                # A cached choice of grant was made before this decision.
                self._forget()
                return current
            # The registry answers a poll faster than its interval with slow_down, and holds back none for a suspended grant.
            pace = current.interval if current.status == "pending" else POLL_SECONDS
            await asyncio.sleep(max(0.0, pace - (time.monotonic() - asked_at)))

    async def get_grant(self, grant_id: str) -> Grant:
        """The grant as it stands now."""
        return Grant.of(await self._life.get(f"/v1/grants/{path_segment(grant_id)}"))

    async def withdraw_grant(self, grant: Grant | str) -> None:
        """Take a pending request back. Raises InvalidStateError once it was decided."""
        await self._end(grant, "withdraw")

    async def revoke_grant(self, grant: Grant | str) -> None:
        """Give an approved grant up for good; its tokens are refused from now on."""
        await self._end(grant, "revoke")

    async def wait_for_confirmation(self, confirmation_id: str) -> Confirmation:
        """Wait until a human has confirmed or denied one transaction, or its time is over."""
        path = f"/v1/confirmations/{path_segment(confirmation_id)}"
        while True:
            asked_at = time.monotonic()
            current = Confirmation.of(await self._life.get(path, wait=POLL_SECONDS))
            if current.status != "pending":
                return current
            await asyncio.sleep(max(0.0, 2 - (time.monotonic() - asked_at)))

    # ---- tokens and calls

    async def get_token(
        self, service_provider_id: str, grant_id: str | None = None, *, action: Action | None = None
    ) -> str:
        """An access token for a service provider, from the cache while it is good, renewed before it expires.

        It is of the grant with `grant_id`, else of one that covers `action`; of several, the one that ends last.
        Without either it is of the only grant there, or of the one that covers all that the others do. Raises
        GrantPendingError with `approval_url` and `claim_code` while a human has yet to decide, NoGrantError where
        nothing may be used, AmbiguousGrantError where the grants differ and nothing says which.
        """
        if grant_id is not None:
            return await self._token(service_provider_id, grant_id)
        grant = await self._choose(service_provider_id, action)
        try:
            return await self._token(service_provider_id, grant.grant_id)
        except InvalidGrantError:
            # It ended, or was suspended, after the grants were looked up.
            self._grants.forget(grant.service_provider)
        grant = await self._choose(service_provider_id, action)
        return await self._token(service_provider_id, grant.grant_id)

    def forget_tokens(self, service_provider_id: str) -> None:
        """Drop cached tokens: after a grant changed, the next call gets a token of its new version."""
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
        """The two headers that authenticate one request, good for a minute and one use.

        `url` is absolute, or a path at the audience's origin; the query is not signed. `action` is what the request
        does, as the service provider will ask about it: it chooses among several grants. Raises AudienceError outside
        the service provider's audience, and what `get_token` raises. `nonce` is the `DPoP-Nonce` of its last answer;
        without, the one that `call` was last given there.
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
        """Call a service provider and return its answer, whatever the status; no redirect is followed.

        `action` chooses the grant, as for `authenticate_headers`. Lost answers, 503 and a short `Retry-After` are
        tried again, each with a new proof and the same Idempotency-Key, so that nothing is done twice; a nonce that
        is asked for is sent at once. Raises TemporarilyUnavailableError when no answer comes, or none that can be unpacked.
        The answer is read whole, whatever its size, for as long as each part of it comes within 10 s: that is the caller's
        to limit, with `asyncio.timeout`, or with `authenticate_headers` and an HTTP client of their own.
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
        """Where a service provider is and what may be asked of it; looked up again after five minutes."""
        path = f"/v1/service-providers/{path_segment(service_provider_id)}"

        async def ask() -> Kept[ServiceProvider]:
            return looked_up(ServiceProvider.of(await self._life.get(path)))

        return await self._providers.get((service_provider_id,), ask)

    async def audit_events(self) -> list[Mapping[str, object]]:
        """The audit events about this agent in the order of the log, those not yet numbered last."""
        return await self._pages("/v1/audit/events")

    async def list_grants(self) -> list[Grant]:
        """Every grant this agent ever asked for, oldest first."""
        grants = [Grant.of(body) for body in await self._pages("/v1/grants")]
        # Ids are UUIDv7: their order is the order of asking.
        return sorted(grants, key=lambda grant: grant.grant_id)

    # ---- inside

    async def _pages(self, path: str) -> list[Mapping[str, object]]:
        rows: list[Mapping[str, object]] = []
        after: str | None = None
        for _ in range(_PAGES):
            answer = await self._life.get(path, {"limit": _PAGE} | ({"after": after} if after else {}))
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
        return await self._tokens.get((service_provider_id, grant_id), lambda: self._issue(grant_id))

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
        return [grant for grant in await self.list_grants() if grant.service_provider == provider.id]

    async def _choose(self, service_provider_id: str, action: Action | None) -> Grant:
        """The usable grant for the action, from the grants known here, and where none will do, from the registry's."""
        if self.identity().agent_id is None:
            raise NoGrantError("This agent has not asked for anything yet. Call request_grant first.")
        provider = await self.service_provider(service_provider_id)
        asked = False

        async def ask() -> Kept[list[Grant]]:
            nonlocal asked
            asked = True
            return looked_up(await self._grants_at(provider))

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

    async def _pending(self, grant: Grant) -> GrantPendingError:
        """The error that says where a human decides. Registering again shows an unclaimed agent's live link and code."""
        agent = await self.register()
        if agent.claim_url:
            approval_url = f"{agent.claim_url}?grant={grant.grant_id}"
        else:
            approval_url = grant.approval_url or f"{self.registry_url}/approvals/{grant.grant_id}/"
        # Not the code itself: an exception ends in logs, where the link alone must not be enough.
        hint = " and to type this agent's claim code (register shows it)" if agent.claim_code else ""
        return GrantPendingError(
            f"A human has yet to decide. Ask them to open {approval_url}{hint}",
            grant_id=grant.grant_id,
            approval_url=approval_url,
            claim_code=agent.claim_code,
        )

    def _nonce_of(self, provider: ServiceProvider) -> ServerNonce:
        """By audience, which is narrower than an origin: two service providers may share one."""
        return self._nonces.setdefault(provider.audience, ServerNonce())
