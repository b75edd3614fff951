"""The agent's client without `await`: the same names, on an event loop in a thread of its own."""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from agentauth.protocol.behavioural_envelope import Envelope
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.errors import InvalidStateError

from .bounded_http import MAX_ANSWER_BYTES
from .client import AgentAuthClient
from .decision_polling import Callback, tell
from .grants_and_tokens import UNSPECIFIED_ORIGIN
from .identity import Identity
from .key_store import KeyStore
from .registry_answers import Agent, Confirmation, Grant, ServiceProvider
from .service_calls import Call, Conversation

T = TypeVar("T")


class SyncAgentAuthClient:
    """`AgentAuthClient` for code without an event loop; its methods say what each of these does.

    Threads may share one. Callbacks run in a thread of their own and may call the client. After a
    fork, the child starts its own thread at its first call. `close` ends the thread and every call
    in progress; a `with` block does it. Do not call it from a coroutine: it would block the loop.
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
        self._client = AgentAuthClient(
            registry_url, key_file=key_file, keys=keys, enrolment_code=enrolment_code, name=name
        )
        self._portal = Portal()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result; it runs on this client's loop. Raises what it raises."""
        return self._portal.run(coroutine)

    def close(self) -> None:
        """End the thread and every call in progress. A second call does nothing."""
        self._portal.close()

    @property
    def registry_url(self) -> str:
        """The registry's origin."""
        return self._client.registry_url

    @property
    def keys(self) -> KeyStore:
        """Where the agent's identity is kept."""
        return self._client.keys

    # ---- who the agent is

    def identity(self) -> Identity:
        """The stored identity; creates a key if there is none. Raises KeyFileError."""
        return self.run(self._identity())

    async def _identity(self) -> Identity:
        return self._client.identity()

    def register(
        self,
        capabilities: Sequence[Capability] = (),
        *,
        description: str = "",
        model_origin: str = UNSPECIFIED_ORIGIN,
    ) -> Agent:
        """Register the agent, or find it again."""
        return self.run(
            self._client.register(capabilities, description=description, model_origin=model_origin)
        )

    def renew_manifest(
        self,
        capabilities: Sequence[Capability] | None = None,
        *,
        description: str | None = None,
        model_origin: str | None = None,
    ) -> Agent:
        """Renew the manifest for a year from now; what you leave out stays unchanged."""
        return self.run(
            self._client.renew_manifest(
                capabilities, description=description, model_origin=model_origin
            )
        )

    def rotate_key(self) -> Agent:
        """Change to a new key; the old one is refused for ever."""
        return self.run(self._client.rotate_key())

    # ---- grants

    def ensure_grant(
        self,
        service: str,
        capabilities: Sequence[Capability],
        *,
        envelope: Envelope | Mapping[str, object] | None = None,
        reason: str = "",
        ask_again: bool = False,
    ) -> Grant:
        """A grant that covers `capabilities` at a service provider, or a request."""
        return self.run(
            self._client.ensure_grant(
                service, capabilities, envelope=envelope, reason=reason, ask_again=ask_again
            )
        )

    def request_grant(
        self,
        service_provider_id: str,
        capabilities: Sequence[Capability],
        envelope: Envelope | Mapping[str, object] | None = None,
        reason: str = "",
    ) -> Grant:
        """Ask a human for `capabilities` at a service provider, within `envelope`."""
        return self.run(
            self._client.request_grant(service_provider_id, capabilities, envelope, reason)
        )

    def wait_for_decision(
        self, grant: Grant | str, *, on_pending: Callback[Grant] | None = None
    ) -> Grant:
        """Wait until a human has decided, without a time limit."""
        return self.run(self._client.wait_for_decision(grant, on_pending=_in_a_thread(on_pending)))

    def get_grant(self, grant_id: str) -> Grant:
        """The grant's current state."""
        return self.run(self._client.get_grant(grant_id))

    def withdraw_grant(self, grant: Grant | str) -> None:
        """Withdraw a pending request."""
        self.run(self._client.withdraw_grant(grant))

    def revoke_grant(self, grant: Grant | str) -> None:
        """Revoke an approved grant permanently."""
        self.run(self._client.revoke_grant(grant))

    def wait_for_confirmation(
        self, confirmation_id: str, *, on_pending: Callback[Confirmation] | None = None
    ) -> Confirmation:
        """Wait until a human has confirmed or denied one transaction, or it expired."""
        return self.run(
            self._client.wait_for_confirmation(confirmation_id, on_pending=_in_a_thread(on_pending))
        )

    # ---- tokens and calls

    def get_token(
        self, service_provider_id: str, grant_id: str | None = None, *, action: Action | None = None
    ) -> str:
        """An access token for a service provider, cached and renewed before it expires."""
        return self.run(self._client.get_token(service_provider_id, grant_id, action=action))

    def forget_tokens(self, service_provider_id: str) -> None:
        """Drop cached tokens."""
        self.run(self._forget(service_provider_id))

    async def _forget(self, service_provider_id: str) -> None:
        self._client.forget_tokens(service_provider_id)

    def authenticate_headers(
        self,
        service_provider_id: str,
        method: str,
        url: str,
        *,
        action: Action | None = None,
        nonce: str | None = None,
    ) -> dict[str, str]:
        """The two headers that authenticate one request, valid for 60 s and one use."""
        return self.run(
            self._client.authenticate_headers(
                service_provider_id, method, url, action=action, nonce=nonce
            )
        )

    def call(
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
        """Call a service provider and return its answer, whatever the status."""
        return self.run(
            self._client.call(
                service_provider_id,
                method,
                url,
                action=action,
                json=json,
                idempotency_key=idempotency_key,
                ask_for=ask_for,
                on_pending=_in_a_thread(on_pending),
                on_step_up=_in_a_thread(on_step_up),
                max_bytes=max_bytes,
            )
        )

    def conversation(self, call: Call) -> Conversation:
        """The tries of one call; `run` runs its coroutines."""
        return self._client.conversation(
            replace(
                call,
                on_pending=_in_a_thread(call.on_pending),
                on_step_up=_in_a_thread(call.on_step_up),
            )
        )

    # ---- what the registry knows

    def service_provider(self, service_provider_id: str) -> ServiceProvider:
        """A service provider's audience and allow-list, cached for five minutes."""
        return self.run(self._client.service_provider(service_provider_id))

    def audit_events(self) -> list[Mapping[str, object]]:
        """The audit events about this agent in log order, those not yet numbered last."""
        return self.run(self._client.audit_events())

    def list_grants(self) -> list[Grant]:
        """Every grant this agent ever requested, oldest first."""
        return self.run(self._client.list_grants())


class Portal:
    """Runs coroutines on an event loop in a thread of its own, for any number of other threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0
        self._is_closed = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. Raises what it raises, InvalidStateError once closed."""
        try:
            loop = self._running()
        except InvalidStateError:
            coroutine.close()
            raise
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise _closed() from None
        except BaseException:
            # Ctrl-C in this thread must end the call in the other one too.
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what runs, and end the thread."""
        with self._lock:
            self._is_closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None or self._process != os.getpid():
            return
        loop.call_soon_threadsafe(_cancel_all, loop)
        if threading.current_thread() is not thread:
            thread.join()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._is_closed:
                raise _closed()
            if self._thread is threading.current_thread():
                raise InvalidStateError(
                    "This call would wait for itself. Use AgentAuthClient in coroutines."
                )
            # A forked child has the objects of its parent, but not its threads.
            if self._loop is None or self._process != os.getpid():
                self._loop, self._process = asyncio.new_event_loop(), os.getpid()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="agentauth", daemon=True
                )
                self._thread.start()
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    ended = asyncio.ensure_future(asyncio.gather(*tasks, return_exceptions=True), loop=loop)
    ended.add_done_callback(lambda _: loop.stop())


def _closed() -> InvalidStateError:
    return InvalidStateError("This client is closed. Make a new SyncAgentAuthClient.")


def _in_a_thread(callback: Callback[T] | None) -> Callback[T] | None:
    """The callback, run outside the loop's thread: it may block, and may call the client."""
    if callback is None:
        return None

    async def call_back(value: T) -> None:
        told: list[Any] = []
        await asyncio.to_thread(lambda: told.append(callback(value)))
        await tell(lambda _: told[0], value)

    return call_back
