"""The agent's client: register, ask a human for a grant, sign calls to a service provider.

Thin: the work is done in `agent_lifecycle`, `grants_and_tokens`, `decision_polling` and
`service_calls`. `sync_client` offers the same names without `await`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import httpx

from agentauth.protocol.behavioural_envelope import Envelope
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.errors import InvalidRequestError

from .agent_lifecycle import AgentLife
from .agent_registry_client import Registry
from .argument_checks import check_action, check_capabilities, check_max_bytes, read_envelope
from .bounded_http import MAX_ANSWER_BYTES
from .decision_polling import Callback, wait_for_confirmation, wait_for_grant
from .grants_and_tokens import UNSPECIFIED_ORIGIN, AgentGrants
from .identity import Identity
from .key_file import KeyFile, default_path
from .key_store import KeyStore
from .registry_answers import Agent, Confirmation, Grant, ServiceProvider
from .service_calls import Call, Conversation, send
from .url_checks import check_registry_url


class AgentAuthClient:
    """One agent at one registry. The key file is read or created at the first call, not before.

    `key_file` has the agent's private key and manifest; by default one per registry in the user's
    configuration directory. `keys` is another store instead, see `key_store`. With an
    `enrolment_code` the agent belongs to a human from the start; without, a human claims it on the
    approval page. `name` is what that human sees.
    """

    def __init__(
        self,
        registry_url: str,
        *,
        key_file: str | PathLike[str] | None = None,
        keys: KeyStore | None = None,
        enrolment_code: str | None = None,
        name: str | None = None,
    ) -> None:
        self.registry_url = check_registry_url(registry_url)
        if keys is not None and key_file is not None:
            raise InvalidRequestError("keys: give key_file or keys, not both.")
        path = Path(key_file) if key_file else default_path(self.registry_url)
        self.keys: KeyStore = keys or KeyFile(path)
        self._registry = Registry(self.registry_url)
        self._life = AgentLife(
            self._registry,
            self.keys,
            name=name,
            enrolment_code=enrolment_code,
            on_change=lambda: self._grants.forget(),  # noqa: PLW0108 — made below, from the life
        )
        self._grants = AgentGrants(self._life, registry_url=self.registry_url, name=name)

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
        declared = check_capabilities(capabilities) if capabilities else ()
        return await self._grants.register(declared, description, model_origin)

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
        declared = None if capabilities is None else check_capabilities(capabilities)
        return await self._life.renew_manifest(declared, description, model_origin)

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
        return await self._grants.ensure(
            service, needed, limits, reason=reason, ask_again=ask_again
        )

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
        limits = read_envelope(envelope)
        return await self._grants.request(service_provider_id, needed, limits, reason)

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
            self._life, grant_id, with_link=self._grants.with_link, on_pending=on_pending
        )
        # The cached choice of grant is older than this decision.
        self._grants.forget()
        return replace(decided, claim_code=code)

    async def get_grant(self, grant_id: str) -> Grant:
        """The grant's current state."""
        return await self._grants.get(grant_id)

    async def withdraw_grant(self, grant: Grant | str) -> None:
        """Withdraw a pending request. Raises InvalidStateError once it was decided."""
        await self._grants.end(grant, "withdraw")

    async def revoke_grant(self, grant: Grant | str) -> None:
        """Revoke an approved grant permanently; its tokens are refused from now on."""
        await self._grants.end(grant, "revoke")

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
        check_action(action)
        if grant_id is not None:
            provider = await self._grants.service_provider(service_provider_id)
            return await self._grants.token(provider.id, grant_id)
        token, _ = await self._grants.use(service_provider_id, action)
        return token

    def forget_tokens(self, service_provider_id: str) -> None:
        """Drop a service provider's cached tokens (id or slug), and all cached grants.

        After a grant changed, the next call then gets a token of its new version.
        """
        self._grants.forget_tokens(service_provider_id)

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
        last. Raises AudienceError outside the audience, AddressError for what is not an https
        address, and as `get_token`.
        """
        check_action(action)
        signed = await self._grants.sign(
            service_provider_id, method, url, action=action, nonce=nonce
        )
        return dict(signed.headers)

    async def call(
        self,
        service_provider_id: str,
        method: str,
        url: str,
        *,
        action: Action | None = None,
        json: Any = None,
        idempotency_key: str | None = None,
        ask_for: Sequence[Capability] = (),
        on_pending: Callback[Grant] | None = None,
        on_step_up: Callback[Confirmation] | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> httpx.Response:
        """Call a service provider and return its answer, whatever the status. Follows no redirect.

        `action` selects the grant, as for `authenticate_headers`. A call waits until the rate of
        its grant allows it. Lost answers, 503 and a short `Retry-After` are retried with a new
        proof and the same Idempotency-Key, so nothing is done twice; a requested nonce is sent at
        once. If no grant covers the call, `ask_for` is requested as by `ensure_grant`. With
        `on_pending`, the call shows a pending grant and waits for the decision; with `on_step_up`,
        it shows the confirmation that the service provider's answer names, waits, and repeats the
        call under the same key. Raises as `authenticate_headers`, ClockError if this host's clock
        is off, and TemporarilyUnavailableError if no answer comes, or one that is compressed
        (none is asked for) or longer than `max_bytes`: the call may have been done. Each part may
        take 10 s; `asyncio.timeout` limits the whole.
        """
        check_action(action)
        check_max_bytes(max_bytes)
        needed = check_capabilities(ask_for) if ask_for else ()
        if needed:
            await self._grants.register_first(needed)
        absolute = await self._grants.address(service_provider_id, url)
        conversation = self.conversation(
            Call(
                service_provider_id,
                method,
                absolute,
                action,
                idempotency_key,
                needed,
                on_pending,
                on_step_up,
            )
        )
        return await send(
            conversation,
            absolute,
            json=json,
            max_bytes=max_bytes,
            transport=self._registry.transport,
        )

    def conversation(self, call: Call) -> Conversation:
        """The tries of one call, for an HTTP client that sends them itself, such as `AgentAuth`."""
        return Conversation(self._life, self._grants, call)

    # ---- what the registry knows

    async def service_provider(self, service_provider_id: str) -> ServiceProvider:
        """A service provider's audience and allow-list, cached for five minutes."""
        return await self._grants.service_provider(service_provider_id)

    async def audit_events(self) -> list[Mapping[str, object]]:
        """The audit events about this agent in log order, those not yet numbered last."""
        return await self._grants.pages("/v1/audit/events")

    async def list_grants(self) -> list[Grant]:
        """Every grant this agent ever requested, oldest first."""
        return await self._grants.list_all()
