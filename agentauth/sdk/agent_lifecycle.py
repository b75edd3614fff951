"""The agent's life cycle at one registry: key and manifest, registered, renewed, widened, rotated.

The next key or manifest is stored beside the current one before the registry is called, so that a
crash at any step leads back to the same agent.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import httpx

from agentauth.protocol.agent_manifest import VerifiedManifest
from agentauth.protocol.capability import Capability
from agentauth.protocol.encoding import parse_timestamp
from agentauth.protocol.errors import (
    AgentAuthError,
    AgentInactiveError,
    InvalidClientError,
    InvalidStateError,
    ManifestError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.key_change import sign_key_change
from agentauth.protocol.keys import LocalSigner, PrivateKey, Signer

from .agent_registry_client import Registry
from .bounded_http import Params
from .client_cache import Locks
from .errors import KeyFileError, RegistryError
from .identity import Identity
from .key_store import KeyStore
from .own_manifest import check_within, is_due, new_manifest, next_manifest, read_manifest
from .registry_answers import Agent
from .registry_http import new_jti

logger = logging.getLogger(__name__)

# Seconds before the next try, after a failed renewal of a manifest that is still valid.
RENEW_AGAIN_SECONDS: Final = 3600
_ME: Final = "/v1/agents/me"

JsonObject = dict[str, object]
T = TypeVar("T")


class AgentLife:
    """Makes the agent's calls to its registry, with its current key and a valid manifest.

    `on_change` is called when earlier tokens have become invalid.
    """

    def __init__(
        self,
        registry: Registry,
        keys: KeyStore,
        *,
        name: str | None,
        enrolment_code: str | None,
        on_change: Callable[[], None],
    ) -> None:
        self.keys = keys
        self._registry = registry
        self._name = name
        self._enrolment_code = enrolment_code
        self._on_change = on_change
        self._stored: Identity | None = None
        self._signer: Signer | None = None
        self._renew_at = 0.0
        self._locks = Locks()

    def identity(self) -> Identity:
        """The stored identity; creates a key if there is none. Raises KeyFileError."""
        if self._stored is None:
            stored = self.keys.load(self._registry.url)
            if stored is None:
                stored = self.keys.create(self.keys.make(self._registry.url))
            self._remember(stored)
        assert self._stored is not None
        return self._stored

    @property
    def signer(self) -> Signer:
        """The current key. Raises KeyFileError."""
        self.identity()
        assert self._signer is not None
        return self._signer

    @property
    def manifest(self) -> VerifiedManifest | None:
        """The current manifest; None before registration. Raises ManifestError."""
        compact = self.identity().manifest
        return None if compact is None else read_manifest(compact, registry=self._registry.url)

    # ---- calls

    async def get(self, path: str, params: Params | None = None, *, wait: int = 0) -> JsonObject:
        """`Registry.get` as this agent. Raises AgentAuthError."""
        return await self._as_agent(
            lambda signer: self._registry.get(signer, path, params, wait=wait)
        )

    async def post(self, path: str, body: Mapping[str, object]) -> JsonObject:
        """`Registry.post` as this agent. Raises AgentAuthError."""
        return await self._as_agent(lambda signer: self._registry.post(signer, path, body))

    async def create(self, path: str, body: Mapping[str, object]) -> tuple[JsonObject, bool]:
        """`Registry.create` as this agent. Raises AgentAuthError."""
        return await self._as_agent(lambda signer: self._registry.create(signer, path, body))

    async def _as_agent(self, ask: Callable[[Signer], Awaitable[T]]) -> T:
        while True:
            await self._keep()
            signer = self.signer
            try:
                return await ask(signer)
            except InvalidClientError:
                # Another process with this key file may have rotated the key.
                self._reload()
                await self._keep()
                if self.signer.kid == signer.kid:
                    raise

    # ---- registration and manifest

    async def register(
        self, capabilities: Sequence[Capability], description: str, model_origin: str
    ) -> Agent:
        """Make the agent known, or find it again.

        Raises ManifestError, and what the registry refuses.
        """
        async with self._locks.of():
            self._reload()
            await self._finish()
            compact = self._to_register(capabilities, description, model_origin)
            body = {"manifest": compact}
            if self._enrolment_code is not None:
                body["enrolment_code"] = self._enrolment_code
            agent = Agent.of(await self._registry.post(self.signer, "/v1/agents", body))
            sent = read_manifest(compact, registry=self._registry.url)
            # Registering again does not renew: the registry then returns the end of the older
            # manifest.
            is_registered = _seconds(agent.expires_at) == sent.expires_at
            self._update(
                lambda stored: replace(
                    stored,
                    agent_id=agent.agent_id,
                    manifest=compact if is_registered else stored.manifest,
                )
            )
            if is_registered and not is_due(sent, now=time.time()):
                return agent
            renewed = await self._in_time(_seconds(agent.expires_at) or 0, self._renew)
            if renewed is None:
                return agent
            return replace(agent, status=renewed.status, expires_at=renewed.expires_at)

    def _to_register(
        self, capabilities: Sequence[Capability], description: str, model_origin: str
    ) -> str:
        """The stored manifest, signed again if it has expired or an earlier key signed it.

        The first manifest ever is stored.
        """
        now = int(time.time())
        if self.identity().manifest is None:
            first = new_manifest(
                self.signer,
                registry=self._registry.url,
                name=self._name,
                description=description,
                model_origin=model_origin,
                capabilities=capabilities,
                now=now,
            )
            self._update(lambda stored: replace(stored, manifest=stored.manifest or first))
        known = self._known()
        check_within(known, name=self._name, capabilities=capabilities)
        if known.expires_at > now and known.jkt == self.signer.kid:
            return known.compact
        return next_manifest(known, self.signer, registry=self._registry.url, now=now)

    async def renew_manifest(
        self,
        capabilities: Sequence[Capability] | None,
        description: str | None,
        model_origin: str | None,
    ) -> Agent:
        """Renew the manifest; what is None stays unchanged.

        Raises ManifestError, and what the registry refuses.
        """
        wanted = (capabilities, description, model_origin)
        if self.keys.why_manifest_is_fixed is not None and wanted != (None, None, None):
            raise KeyFileError(self.keys.why_manifest_is_fixed)
        async with self._locks.of():
            self._reload()
            await self._finish()
            return await self._renew(*wanted)

    async def _renew(
        self,
        capabilities: Sequence[Capability] | None = None,
        description: str | None = None,
        model_origin: str | None = None,
    ) -> Agent:
        compact = next_manifest(
            self._known(),
            self.signer,
            registry=self._registry.url,
            now=int(time.time()),
            capabilities=capabilities,
            description=description,
            model_origin=model_origin,
        )
        self._update(lambda stored: replace(stored, next_manifest=compact))
        return await self._declare(compact)

    async def _declare(self, compact: str) -> Agent:
        """Send the next manifest. After a lost answer the same bytes can be sent again."""

        def dropped(stored: Identity) -> Identity:
            return (
                replace(stored, next_manifest=None) if stored.next_manifest == compact else stored
            )

        declared = read_manifest(compact, registry=self._registry.url)
        is_changed = declared.content() != self._known().content()
        try:
            agent = Agent.of(
                await self._registry.post(self.signer, f"{_ME}/manifest", {"manifest": compact})
            )
        except AgentAuthError as error:
            if not _may_be_done(error):
                self._update(dropped)
            raise
        self._update(lambda stored: replace(dropped(stored), manifest=compact))
        if is_changed:
            # The versions of all grants rose.
            self._on_change()
        return agent

    # ---- another key

    async def rotate_key(self) -> Agent:
        """Take another key (docs/protocol.md section 5), or finish an interrupted change.

        1. The next key is stored; if another process was first, its key is used. 2. The registry
        swaps the keys. 3. The next key replaces the current one in the file. The manifest goes on;
        the next one is signed by the new key. Raises KeyFileError if the store cannot keep
        another key, and what the registry refuses.
        """
        if self.keys.why_key_is_fixed is not None:
            raise KeyFileError(self.keys.why_key_is_fixed)
        self._known()
        agent = Agent.of(await self.get(_ME))
        if agent.status != "active":
            raise AgentInactiveError(f"This agent is {agent.status} and may not change its key.")
        async with self._locks.of():
            self._reload()
            await self._finish_manifest()
            fresh = PrivateKey.generate(self.signer.public.alg)
            self._update(lambda stored: replace(stored, next_key=stored.next_key or fresh))  # 1
            await self._finish_key()  # 2, 3
        return Agent.of(await self.get(_ME))

    async def _finish_key(self) -> None:
        """Replace the current key by the next one, at the registry and then in the file.

        A next key is never deleted: another process may be sending it to the registry right now.
        """
        identity = self.identity()
        if identity.next_key is None:
            return
        taken = LocalSigner(identity.next_key)
        change = sign_key_change(
            taken,
            audience=self._registry.url,
            issued_at=int(time.time()),
            jti=new_jti(),
            agent_id=identity.agent_id or "",
            old_jkt=self.signer.kid,
        )
        try:
            await self._registry.post(self.signer, f"{_ME}/key", {"new_key": change})
        except (InvalidClientError, InvalidStateError):
            # The change may have been made already: before a crash, by a try whose answer was lost,
            # or by another process. Then the registry knows the next key.
            try:
                await self._registry.get(taken, _ME)
            except InvalidClientError:
                self._reload()
                if _kid(self.identity().next_key) == taken.kid:
                    raise
                # Another process has finished this change, and begun the next one or not.
                return

        def swapped(stored: Identity) -> Identity:
            if stored.next_key is None or _kid(stored.next_key) != taken.kid:
                return stored
            return replace(stored, private_key=stored.next_key, next_key=None)

        self._update(swapped)

    # ---- inside

    async def _keep(self) -> None:
        """Before each call: finish what was interrupted, and renew the manifest in time."""
        if self.identity().next_key is None and not self._is_late():
            return
        async with self._locks.of():
            # Another call or process may have done it meanwhile.
            self._reload()
            await self._finish_key_if_possible()
            if self._is_late():
                await self._in_time(self._known().expires_at, self._catch_up)

    def _is_late(self) -> bool:
        """Is a manifest to be sent: an interrupted one, or a renewal?"""
        identity, now = self.identity(), time.time()
        if identity.agent_id is None or identity.manifest is None or now < self._renew_at:
            return False
        return identity.next_manifest is not None or is_due(self._known(), now=now)

    async def _catch_up(self) -> Agent | None:
        await self._finish_manifest()
        return await self._renew() if is_due(self._known(), now=time.time()) else None

    async def _in_time(
        self, ends_at: int, renew: Callable[[], Awaitable[Agent | None]]
    ) -> Agent | None:
        """Renew; until the current manifest ends (Unix seconds), a failure is only logged."""
        try:
            return await renew()
        except AgentAuthError as error:
            if ends_at <= time.time():
                raise
            self._renew_at = time.time() + RENEW_AGAIN_SECONDS
            logger.warning(
                "The manifest of agent %s ends at %s (seconds since 1970) and could not be "
                "renewed: %s",
                self.identity().agent_id,
                ends_at,
                error,
            )
            return None

    async def _finish(self) -> None:
        await self._finish_key_if_possible()
        await self._finish_manifest()

    async def _finish_key_if_possible(self) -> None:
        try:
            await self._finish_key()
        except (AgentInactiveError, InvalidClientError) as error:
            # The current key may still register, read and withdraw.
            logger.warning(
                "The agent's next key stays in %s, because the change was refused: %s",
                self.keys.name,
                error,
            )

    async def _finish_manifest(self) -> None:
        following = self.identity().next_manifest
        if following is None:
            return
        try:
            await self._declare(following)
        except AgentAuthError as error:
            if _may_be_done(error):
                raise
            logger.warning("A manifest was refused after an interrupted renewal: %s", error)

    def _known(self) -> VerifiedManifest:
        manifest = self.manifest
        if manifest is None:
            raise ManifestError(
                "This agent has no manifest yet. Call register with its capabilities first."
            )
        return manifest

    def _reload(self) -> None:
        """Read the file again: another process may have changed it. Raises KeyFileError."""
        self.identity()
        self._update(lambda stored: stored)

    def _remember(self, identity: Identity) -> None:
        former, self._stored = self._signer, identity
        self._signer = identity.signer
        if former is not None and former.kid != self._signer.kid:
            # Tokens are bound to the former key.
            self._on_change()

    def _update(self, change: Callable[[Identity], Identity]) -> None:
        self._remember(self.keys.update(self._registry.url, change))


def _kid(key: PrivateKey | None) -> str | None:
    return None if key is None else key.public.thumbprint


def _may_be_done(error: AgentAuthError) -> bool:
    """Is it unknown whether the act was done: no answer, a 5xx, or a 200 that cannot be read?"""
    if isinstance(error, RegistryError):
        return (
            httpx.codes.is_success(error.status)
            or error.status >= httpx.codes.INTERNAL_SERVER_ERROR
        )
    return isinstance(error, TemporarilyUnavailableError)


def _seconds(timestamp: str | None) -> int | None:
    return None if timestamp is None else int(parse_timestamp(timestamp).timestamp())
