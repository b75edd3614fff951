"""Request, choose and cache an agent's grants and tokens, and sign the requests that use them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from agentauth.protocol.behavioural_envelope import EMPTY, Envelope
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.errors import (
    CooldownActiveError,
    InvalidGrantError,
    InvalidStateError,
    TooManyPendingGrantsError,
)

from .agent_lifecycle import AgentLife
from .client_cache import Cache, CachedValue, Locks, cache_lookup, read_token
from .ensure_grant_plan import Plan, held, plan, with_time
from .errors import AmbiguousGrantError, GrantPendingError, NoGrantError, RegistryError
from .grant_choice import choose_grant, find_same, is_usable, waits_for_human
from .own_manifest import check_within
from .rate_pacing import Pacing, Turn
from .registry_answers import Agent, Grant, ServiceProvider, results_of
from .registry_http import new_jti
from .server_nonces import ServerNonce
from .url_checks import check_audience, path_segment, within_audience, without_query

# The manifest must name an origin; `.invalid` (RFC 2606) says honestly that none was given.
UNSPECIFIED_ORIGIN: Final = "unspecified.invalid"
_PAGE: Final = 100
# A registry that always names a further page must not keep an agent busy for ever.
_MAX_PAGES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Signed:
    """The headers that authenticate one request, what they were made of, and its turn."""

    headers: Mapping[str, str] = field(repr=False)
    token: str = field(repr=False)
    turn: Turn | None
    sent_nonce: str | None
    server_nonce: ServerNonce


class AgentGrants:
    """The grants of one agent. Methods raise the registry's refusals."""

    def __init__(self, life: AgentLife, *, registry_url: str, name: str | None) -> None:
        self._life = life
        self.registry_url = registry_url
        self._name = name
        self._agent: Agent | None = None
        self._tokens = Cache[str]()
        self._grants = Cache[list[Grant]]()
        self._providers = Cache[ServiceProvider]()
        # The id of each service provider by the ids and slugs that callers used for it.
        self._ids: dict[str, str] = {}
        self._locks = Locks()
        self._nonces: dict[str, ServerNonce] = {}
        self.pacing = Pacing()

    def forget(self) -> None:
        """Drop all cached tokens and grants."""
        self._tokens.forget()
        self._grants.forget()

    def forget_tokens(self, service: str) -> None:
        """Drop all cached grants, and the cached tokens of one service provider (id or slug).

        All tokens if this client has not used that id or slug yet: it may be another name of one
        that it has used.
        """
        known = self._ids.get(service)
        self._tokens.forget(*([] if known is None else [known]))
        self._grants.forget()

    def drop_token(self, service: str, token: str) -> None:
        """If this token is still cached, drop it as `forget_tokens` does.

        If many calls are refused with the same token, the first call drops it and one call renews
        it.
        """
        if self._tokens.drop(token):
            self.forget_tokens(service)

    # ---- asking

    async def register(
        self,
        capabilities: Sequence[Capability] = (),
        description: str = "",
        model_origin: str = UNSPECIFIED_ORIGIN,
    ) -> Agent:
        """`AgentAuthClient.register`."""
        self._agent = await self._life.register(capabilities, description, model_origin)
        return self._agent

    async def ensure(
        self,
        service: str,
        capabilities: Sequence[Capability],
        envelope: Envelope | None,
        *,
        reason: str,
        ask_again: bool,
    ) -> Grant:
        """`AgentAuthClient.ensure_grant`.

        Sends nothing if the cached grants already hold all of it.
        """
        await self.register_first(capabilities)
        provider = await self.service_provider(service)
        async with self._asking(provider):
            known = await self._grants.get((provider.id,), self._look_up(provider))
            if (grant := held(known, capabilities, envelope)) is not None:
                return grant
            await self._known_to_cover(capabilities)
            while True:
                known = await self._fresh(provider)
                planned = plan(known, capabilities, envelope, ask_again=ask_again)
                if planned.grant is not None:
                    waits = waits_for_human(planned.grant)
                    return await self.with_link(planned.grant) if waits else planned.grant
                made = await self._ask_unless_another_did(provider, planned, envelope, reason)
                if made is not None:
                    return made

    async def _ask_unless_another_did(
        self, provider: ServiceProvider, planned: Plan, envelope: Envelope | None, reason: str
    ) -> Grant | None:
        """The new request; None if another process asked between our lookup and our request.

        The registry returns an identical request instead of making another, but it does not detect
        one that only overlaps. So if ours is the later one, withdraw it, and plan again.
        """

        def is_settled(grants: Sequence[Grant]) -> bool:
            try:
                return plan(grants, planned.missing, envelope, ask_again=True) == planned
            except NoGrantError:
                # A person suspended the other one meanwhile.
                return True

        try:
            made, is_new = await self._ask(provider, planned.missing, envelope or EMPTY, reason)
        except CooldownActiveError as error:
            raise with_time(error) from None
        except TooManyPendingGrantsError:
            if is_settled(await self._fresh(provider)):
                raise
            return None
        if not is_new:
            return made
        # Ids are UUIDv7, so they sort by time of request.
        earlier = [each for each in await self._fresh(provider) if each.grant_id < made.grant_id]
        if is_settled(earlier):
            return made
        # A person may have decided about it meanwhile: the next plan says what follows.
        with suppress(InvalidStateError):
            await self.end(made, "withdraw")
        return None

    async def request(
        self, service: str, capabilities: Sequence[Capability], envelope: Envelope, reason: str
    ) -> Grant:
        """`AgentAuthClient.request_grant`."""
        agent = await self._known_to_cover(capabilities)
        provider = await self.service_provider(service)
        async with self._asking(provider):
            same = find_same(await self._grants_at(provider), capabilities, envelope)
            if same is not None:
                code = agent.claim_code if same.status == "pending" else None
                return replace(same, claim_code=code)
            made, _ = await self._ask(provider, capabilities, envelope, reason)
            return made

    def _asking(self, provider: ServiceProvider) -> asyncio.Lock:
        """Held from the lookup to the request: calls at once must not ask a person twice.

        By id: one call may name the service provider by its slug, another by its id.
        """
        return self._locks.of("ask", provider.id)

    async def register_first(self, capabilities: Sequence[Capability]) -> None:
        """Register an agent that is not registered yet: before that, the registry answers nothing.

        Raises ManifestError beyond the manifest.
        """
        if self._life.identity().agent_id is None:
            await self._known_to_cover(capabilities)

    async def _known_to_cover(self, capabilities: Sequence[Capability]) -> Agent:
        """Register if needed. Raises ManifestError beyond the manifest."""
        async with self._locks.of("register"):
            # An unclaimed agent's claim link lasts 1 h. Registering again returns the current one.
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
    ) -> tuple[Grant, bool]:
        """The request, and whether it is new."""
        assert self._agent is not None
        body: dict[str, object] = {
            "service_provider": provider.id,
            "capabilities": [capability.to_json() for capability in capabilities],
            "envelope": envelope.to_json(),
            "reason": reason,
        }
        answer, is_new = await self._life.create("/v1/grants", body)
        self._grants.forget()
        code = self._agent.claim_code
        return Grant.of(answer, service_provider=provider.id, claim_code=code), is_new

    async def end(self, grant: Grant | str, how: str) -> None:
        """Withdraw or revoke a grant."""
        grant_id = grant if isinstance(grant, str) else grant.grant_id
        await self._life.post(f"/v1/grants/{path_segment(grant_id)}/{how}", {})
        self.forget()

    async def with_link(self, grant: Grant) -> Grant:
        """The grant with the present link and claim code, which registering renews."""
        agent = await self.register()
        url = grant.approval_url or f"{self.registry_url}/approvals/{grant.grant_id}/"
        if agent.claim_url:
            url = f"{agent.claim_url}?grant={grant.grant_id}"
        return replace(grant, approval_url=url, claim_code=agent.claim_code)

    async def pending(self, grant: Grant) -> GrantPendingError:
        """The error that says where a human decides."""
        shown = await self.with_link(grant)
        assert shown.approval_url is not None
        # The message has the link but not the code: exceptions reach logs, and with both, a reader
        # of the logs could claim the agent.
        hint = (
            " and to type this agent's claim code (register shows it)" if shown.claim_code else ""
        )
        return GrantPendingError(
            f"A human has yet to decide. Ask them to open {shown.approval_url}{hint}",
            grant_id=grant.grant_id,
            approval_url=shown.approval_url,
            claim_code=shown.claim_code,
        )

    # ---- looking up

    async def get(self, grant_id: str) -> Grant:
        """The grant's current state."""
        return Grant.of(await self._life.get(f"/v1/grants/{path_segment(grant_id)}"))

    async def list_all(self) -> list[Grant]:
        """Every grant this agent ever requested, oldest first."""
        grants = [Grant.of(body) for body in await self.pages("/v1/grants")]
        # Ids are UUIDv7, so they sort by time of request.
        return sorted(grants, key=lambda grant: grant.grant_id)

    async def service_provider(self, service: str) -> ServiceProvider:
        """A service provider's audience and allow-list, cached for five minutes."""
        path = f"/v1/service-providers/{path_segment(service)}"

        async def ask() -> CachedValue[ServiceProvider]:
            return cache_lookup(ServiceProvider.of(await self._life.get(path)))

        provider = await self._providers.get((service,), ask)
        self._ids[service] = provider.id
        return provider

    async def pages(self, path: str) -> list[Mapping[str, object]]:
        """The rows of all pages of a list. Raises RegistryError if it does not end."""
        rows: list[Mapping[str, object]] = []
        after: str | None = None
        for _ in range(_MAX_PAGES):
            answer = await self._life.get(
                path, {"limit": _PAGE} | ({"after": after} if after else {})
            )
            rows += results_of(answer)
            following = answer.get("next")
            if not isinstance(following, str) or not following:
                return rows
            if following == after:
                break
            after = following
        raise RegistryError(
            f"The registry's list {path} does not end. Tell its operator.", status=200
        )

    async def _fresh(self, provider: ServiceProvider) -> list[Grant]:
        """The agent's grants there as the registry has them now."""
        self._grants.forget(provider.id)
        return await self._grants.get((provider.id,), self._look_up(provider))

    async def _grants_at(self, provider: ServiceProvider) -> list[Grant]:
        return [grant for grant in await self.list_all() if grant.service_provider == provider.id]

    def _look_up(
        self, provider: ServiceProvider
    ) -> Callable[[], Awaitable[CachedValue[list[Grant]]]]:
        async def ask() -> CachedValue[list[Grant]]:
            return cache_lookup(await self._grants_at(provider))

        return ask

    def _check_registered(self) -> None:
        """Raises NoGrantError: an agent without a registration has no grant."""
        if self._life.identity().agent_id is None:
            raise NoGrantError("This agent has not asked for a grant yet. Call ensure_grant first.")

    async def _choose(self, service: str, action: Action | None) -> Grant:
        """The usable grant for the action. If the cached grants have none, look up once more."""
        self._check_registered()
        provider = await self.service_provider(service)
        look_up, asked = self._look_up(provider), False

        async def ask() -> CachedValue[list[Grant]]:
            nonlocal asked
            asked = True
            return await look_up()

        while True:
            known = await self._grants.get((provider.id,), ask)
            try:
                grant = choose_grant(known, action, provider, called=service)
                if is_usable(grant):
                    return grant
                raise await self.pending(grant)
            except (AmbiguousGrantError, GrantPendingError, NoGrantError):
                self._grants.forget(provider.id)
                if asked:
                    raise

    # ---- tokens and proofs

    async def token(self, provider_id: str, grant_id: str) -> str:
        """The token of one grant, cached and renewed before it expires."""
        return await self._tokens.get((provider_id, grant_id), lambda: self._issue(grant_id))

    async def _issue(self, grant_id: str) -> CachedValue[str]:
        asked_at = time.time()
        try:
            answer = await self._life.post("/v1/tokens", {"grant_id": grant_id})
        except InvalidGrantError:
            current = await self.get(grant_id)
            if waits_for_human(current):
                raise await self.pending(current) from None
            raise
        return read_token(answer, asked_at=asked_at)

    async def use(
        self, service: str, action: Action | None, *, paced: bool = False
    ) -> tuple[str, Turn | None]:
        """A token that may do the action; if `paced`, when it is this call's turn.

        Raises AmbiguousGrantError, GrantPendingError, NoGrantError, and the registry's refusals.
        """
        is_last = False
        while True:
            grant = await self._choose(service, action)
            turn = await self.pacing.take_turn(grant) if paced else None
            try:
                return await self.token(grant.service_provider, grant.grant_id), turn
            except BaseException as error:
                if turn is not None:
                    turn.give_back()
                if not isinstance(error, InvalidGrantError | GrantPendingError):
                    raise
                # The grant ended, or needs a new signature, since the lookup: choose once more.
                self._grants.forget(grant.service_provider)
                if is_last:
                    raise
                is_last = True

    async def address(self, service: str, url: str) -> str:
        """`url` as an absolute one within the audience.

        Raises AudienceError, AddressError, and NoGrantError if this agent is not registered yet.
        """
        self._check_registered()
        provider = await self.service_provider(service)
        return within_audience(url, check_audience(provider.audience))

    async def sign(
        self,
        service: str,
        method: str,
        url: str,
        *,
        action: Action | None,
        nonce: str | None = None,
        paced: bool = False,
    ) -> Signed:
        """Headers for one request, never used twice.

        Raises as `address` and `use`, and what the key store raises if it cannot sign.
        """
        absolute = await self.address(service, url)
        # Per audience, not per origin: two service providers may share an origin.
        provider = await self.service_provider(service)
        server_nonce = self._nonces.setdefault(provider.audience, ServerNonce())
        token, turn = await self.use(service, action, paced=paced)
        sent = nonce or server_nonce.latest
        try:
            proof = make_proof(
                self._life.signer,
                method=method,
                url=without_query(absolute),
                iat=int(time.time()),
                jti=new_jti(),
                access_token=token,
                nonce=sent,
            )
        except BaseException:
            # A key management service may fail to sign.
            if turn is not None:
                turn.give_back()
            raise
        headers = {"Authorization": f"DPoP {token}", "DPoP": proof}
        return Signed(headers, token, turn, sent, server_nonce)
