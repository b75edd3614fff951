"""The agent's client: register, ask a human for a grant, and sign calls to a service provider with it."""

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Final

import httpx

from agentauth.protocol.capability import Capability
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.encoding import parse_timestamp
from agentauth.protocol.envelope import Envelope
from agentauth.protocol.errors import InvalidGrantError, InvalidRequestError
from agentauth.protocol.keys import LocalSigner, PrivateKey

from .addresses import check_audience, check_registry_url, within_audience, without_query
from .answers import Agent, Confirmation, Grant, ServiceProvider
from .calls import send
from .errors import GrantPendingError, NoGrantError, RegistryError
from .key_file import Identity, KeyFile, default_path
from .manifests import check_within, new_manifest, read_manifest, renewed
from .nonces import ServerNonce
from .tokens import Token, TokenCache
from .wire import Registry, new_jti

POLL_SECONDS: Final = 25
# The manifest must name an origin; `.invalid` (RFC 2606) says honestly that none was given.
UNSPECIFIED_ORIGIN: Final = "unspecified.invalid"
PROVIDER_SECONDS: Final = 300
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")
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
        self._enrolment_code = enrolment_code
        self._name = name
        self._registry = Registry(self.registry_url)
        self._identity: Identity | None = None
        self._signer: LocalSigner | None = None
        self._agent: Agent | None = None
        self._tokens = TokenCache()
        self._providers: dict[str, tuple[float, ServiceProvider]] = {}
        self._nonces: dict[str, ServerNonce] = {}

    # ---- who the agent is

    def identity(self) -> Identity:
        """The stored identity; a new key is made where there is none. Raises KeyFileError."""
        if self._identity is None:
            stored = self.key_file.load(self.registry_url)
            if stored is None:
                stored = self.key_file.create(Identity(self.registry_url, PrivateKey.generate()))
            self._remember(stored)
        assert self._identity is not None
        return self._identity

    async def register(
        self,
        capabilities: Sequence[Capability] = (),
        *,
        description: str = "",
        model_origin: str = UNSPECIFIED_ORIGIN,
    ) -> Agent:
        """Make the agent known to the registry, or find it again; its claim link and code while unclaimed.

        The first time `capabilities` are all it may ever ask for; later they must lie within that. `model_origin` is
        the host name of who made the model behind the agent, which the human sees as a claim.
        Raises ManifestError where they do not, and what the registry refuses.
        """
        now = int(time.time())
        identity, signer = self.identity(), self._sign()
        if identity.manifest is None:
            compact = new_manifest(
                signer,
                registry=self.registry_url,
                name=self._name,
                description=description,
                model_origin=model_origin,
                capabilities=capabilities,
                now=now,
            )
            identity = self._update(lambda stored: replace(stored, manifest=stored.manifest or compact))
        assert identity.manifest is not None
        manifest = read_manifest(identity.manifest, registry=self.registry_url)
        check_within(manifest, name=self._name, capabilities=capabilities)
        body = {"manifest": identity.manifest}
        if manifest.expires_at <= now:
            body["manifest"] = fresh = renewed(manifest, signer, registry=self.registry_url, now=now)
            self._update(lambda stored: replace(stored, manifest=fresh))
        if self._enrolment_code is not None:
            body["enrolment_code"] = self._enrolment_code
        agent = Agent.of(await self._registry.post(signer, "/v1/agents", body))
        self._update(lambda stored: replace(stored, agent_id=agent.agent_id))
        self._agent = agent
        return agent

    # ---- grants

    async def request_grant(
        self,
        service_provider_id: str,
        capabilities: Sequence[Capability],
        envelope: Envelope | Mapping[str, object] | None = None,
        reason: str = "",
    ) -> Grant:
        """Ask a human for `capabilities` at a service provider (its id or slug), within the limits of `envelope`.

        Registers first where needed. Show the human the grant's `approval_url`, and its `claim_code` where there is
        one. Raises ManifestError for capabilities beyond the manifest, and what the registry refuses.
        """
        if self._agent is None:
            await self.register(capabilities)
        assert self._agent is not None
        manifest = self.identity().manifest
        assert manifest is not None
        known = read_manifest(manifest, registry=self.registry_url)
        check_within(known, name=self._name, capabilities=capabilities)
        limits = envelope.to_json() if isinstance(envelope, Envelope) else dict(envelope or {})
        body: dict[str, object] = {
            "service_provider": service_provider_id,
            "capabilities": [capability.to_json() for capability in capabilities],
            "envelope": limits,
            "reason": reason,
        }
        answer = await self._registry.post(self._sign(), "/v1/grants", body)
        return Grant.of(answer, service_provider=service_provider_id, claim_code=self._agent.claim_code)

    async def wait_for_decision(self, grant: Grant | str) -> Grant:
        """Wait until the grant is no longer pending, however long the human takes; `status` says what became of it.

        A limit is the caller's: `async with asyncio.timeout(600): …`. Raises what the registry refuses.
        """
        grant_id = grant if isinstance(grant, str) else grant.grant_id
        code = None if isinstance(grant, str) else grant.claim_code
        while True:
            asked_at = time.monotonic()
            answer = await self._registry.get(
                self._sign(), f"/v1/grants/{_segment(grant_id)}", wait=POLL_SECONDS
            )
            current = Grant.of(answer, claim_code=code)
            if current.status != "pending":
                # A cached choice of grant was made before this decision.
                self._tokens.forget()
                return current
            # The registry answers a poll faster than its interval with slow_down.
            await asyncio.sleep(max(0.0, current.interval - (time.monotonic() - asked_at)))

    async def get_grant(self, grant_id: str) -> Grant:
        """The grant as it stands now."""
        return Grant.of(await self._registry.get(self._sign(), f"/v1/grants/{_segment(grant_id)}"))

    async def withdraw_grant(self, grant: Grant | str) -> None:
        """Take a pending request back. Raises InvalidStateError once it was decided."""
        await self._end(grant, "withdraw")

    async def revoke_grant(self, grant: Grant | str) -> None:
        """Give an approved grant up for good; its tokens are refused from now on."""
        await self._end(grant, "revoke")
        self._tokens.forget()

    async def wait_for_confirmation(self, confirmation_id: str) -> Confirmation:
        """Wait until a human has confirmed or denied one transaction, or its time is over."""
        path = f"/v1/confirmations/{_segment(confirmation_id)}"
        while True:
            asked_at = time.monotonic()
            current = Confirmation.of(await self._registry.get(self._sign(), path, wait=POLL_SECONDS))
            if current.status != "pending":
                return current
            await asyncio.sleep(max(0.0, 2 - (time.monotonic() - asked_at)))

    # ---- tokens and calls

    async def get_token(self, service_provider_id: str, grant_id: str | None = None) -> str:
        """An access token for a service provider, from the cache while it is good, renewed before it expires.

        Without `grant_id` the latest approved grant there is used. Raises GrantPendingError with `approval_url` and
        `claim_code` while a human has yet to decide, NoGrantError where nothing may be used.
        """
        return await self._tokens.get(
            (service_provider_id, grant_id), lambda: self._issue(service_provider_id, grant_id)
        )

    def forget_tokens(self, service_provider_id: str) -> None:
        """Drop cached tokens: after a grant changed, the next call gets a token of its new version."""
        self._tokens.forget(service_provider_id)

    async def authenticate_headers(
        self, service_provider_id: str, method: str, url: str, *, nonce: str | None = None
    ) -> dict[str, str]:
        """The two headers that authenticate one request, good for a minute and one use.

        `url` is absolute, or a path at the audience's origin; the query is not signed. Raises AudienceError outside
        the service provider's audience, and what `get_token` raises. `nonce` is the `DPoP-Nonce` of its last answer;
        without, the one that `call` was last given there.
        """
        provider = await self.service_provider(service_provider_id)
        absolute = within_audience(url, check_audience(provider.audience))
        token = await self.get_token(service_provider_id)
        proof = make_proof(
            self._sign(),
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
        json: Any = None,
        idempotency_key: str | None = None,
    ) -> httpx.Response:
        """Call a service provider and return its answer, whatever the status; no redirect is followed.

        Lost answers, 503 and a short `Retry-After` are tried again, each with a new proof and the same
        Idempotency-Key, so that nothing is done twice; a nonce that is asked for is sent at once. Raises TemporarilyUnavailableError when nobody answers.
        """
        provider = await self.service_provider(service_provider_id)
        absolute = within_audience(url, check_audience(provider.audience))

        async def sign(nonce: str | None, *, fresh_token: bool) -> dict[str, str]:
            if fresh_token:
                self.forget_tokens(service_provider_id)
            return await self.authenticate_headers(service_provider_id, method, absolute, nonce=nonce)

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
        known = self._providers.get(service_provider_id)
        if known is None or known[0] <= time.monotonic():
            path = f"/v1/service-providers/{_segment(service_provider_id)}"
            provider = ServiceProvider.of(await self._registry.get(self._sign(), path))
            known = self._providers[service_provider_id] = (time.monotonic() + PROVIDER_SECONDS, provider)
        return known[1]

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
            answer = await self._registry.get(
                self._sign(), path, {"limit": _PAGE} | ({"after": after} if after else {})
            )
            rows += _results(answer)
            following = answer.get("next")
            after = following if isinstance(following, str) and following else None
            if after is None:
                break
        return rows

    async def _end(self, grant: Grant | str, how: str) -> None:
        grant_id = grant if isinstance(grant, str) else grant.grant_id
        await self._registry.post(self._sign(), f"/v1/grants/{_segment(grant_id)}/{how}", {})

    async def _issue(self, service_provider_id: str, grant_id: str | None) -> Token:
        grant = grant_id or await self._usable_grant(service_provider_id)
        asked_at = time.time()
        try:
            answer = await self._registry.post(self._sign(), "/v1/tokens", {"grant_id": grant})
        except InvalidGrantError:
            current = await self.get_grant(grant)
            if current.status == "pending":
                raise await self._pending(current) from None
            raise
        return Token.of(answer, asked_at=asked_at)

    async def _usable_grant(self, service_provider_id: str) -> str:
        if self.identity().agent_id is None:
            raise NoGrantError("This agent has not asked for anything yet. Call request_grant first.")
        provider = await self.service_provider(service_provider_id)
        grants = [grant for grant in await self.list_grants() if grant.service_provider == provider.id]
        usable = [grant for grant in grants if grant.status == "approved" and _is_live(grant)]
        if usable:
            return max(usable, key=_decided_at).grant_id
        pending = [grant for grant in grants if grant.status == "pending"]
        if pending:
            raise await self._pending(pending[-1])
        if not grants:
            raise NoGrantError(f"This agent has not asked for anything at {provider.name} yet.")
        last = grants[-1]
        why = f" The reason given: {last.deny_reason}" if last.deny_reason else ""
        raise NoGrantError(
            f"The last grant at {provider.name} is {last.status}.{why}",
            reason=last.status,
            grant_id=last.grant_id,
        )

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

    def _sign(self) -> LocalSigner:
        if self._signer is None:
            self.identity()
        assert self._signer is not None
        return self._signer

    def _remember(self, identity: Identity) -> Identity:
        self._identity = identity
        self._signer = LocalSigner(identity.private_key)
        return identity

    def _update(self, change: Callable[[Identity], Identity]) -> Identity:
        return self._remember(self.key_file.update(self.registry_url, change))


def _segment(identifier: str) -> str:
    """An id or slug as one path segment: it may come from a file or from a service provider's answer."""
    if _IDENTIFIER.fullmatch(identifier) is None:
        raise InvalidRequestError("An id or slug is letters, digits, hyphens and underscores.")
    return identifier


def _results(answer: Mapping[str, object]) -> list[Mapping[str, object]]:
    results = answer.get("results")
    if not isinstance(results, list):
        raise RegistryError("The registry's answer has no results.", status=200)
    return [row for row in results if isinstance(row, dict)]


def _is_live(grant: Grant) -> bool:
    return grant.valid_until is None or parse_timestamp(grant.valid_until).timestamp() > time.time()


def _decided_at(grant: Grant) -> tuple[float, str]:
    decided = grant.answer.get("decided_at")
    return (parse_timestamp(decided).timestamp() if isinstance(decided, str) else 0.0, grant.grant_id)
