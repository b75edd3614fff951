"""Verification in the web process: each call reads its state from the database and may block."""

import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.utils.module_loading import import_string

from agentauth.protocol.errors import InvalidTokenError, TemporarilyUnavailableError
from agentauth.protocol.token import TokenKey
from audit.services import Actor
from kms.process_key_certificates import token_keys
from registry.models import ServiceProvider
from registry.services.token_state import token_state
from verifier import verification
from verifier.requests import VerifyRequest
from verifier.services import introspection, replay_cache_lease
from verifier.services.batch import answer_one
from verifier.services.batch_fairness import ALONE, FaultCount
from verifier.services.cached_token import CachedToken, known_of
from verifier.services.clock_readings import ClockReading
from verifier.services.host_clock_check import CLOCK
from verifier.services.replay_epochs import ReplayEpoch
from verifier.stores import ProviderKey
from verifier.stores.acknowledged_events import ACKNOWLEDGED, read_acknowledged
from verifier.stores.database_decisions import DecisionRequest, Outcome, decide_one
from verifier.stores.lua_scripts import Reply, Script
from verifier.stores.redis_decisions import ScriptCall
from verifier.stores.redis_servers_for_threads import SyncServers
from verifier.verification import VerifyAnswer

logger = logging.getLogger(__name__)

T = TypeVar("T")


def verify(
    *,
    service_provider: ServiceProvider,
    request: VerifyRequest,
    provider_key: ProviderKey | None = None,
    actor: Actor,
    now: datetime,
) -> VerifyAnswer:
    """`verifier.verification.verify`."""
    return run_to_end(
        verification.verify(
            WebProcess(now),
            service_provider=service_provider,
            request=request,
            provider_key=provider_key,
            actor=actor,
            now=now,
        )
    )


def verify_batch(
    *,
    service_provider: ServiceProvider,
    requests: Sequence[object],
    actor: Actor,
    clock: Callable[[], datetime],
) -> list[Mapping[str, Any]]:
    """Answer the requests one after the other, in their order."""
    faults, answers = FaultCount(), []
    for each in requests:
        now = clock()
        one = answer_one(
            WebProcess(now),
            service_provider=service_provider,
            request=each,
            actor=actor,
            now=now,
            turn=ALONE,
            faults=faults,
        )
        answers.append(run_to_end(one))
        if faults.in_a_row:
            # Do not use a broken connection for the next request.
            connection.close_if_unusable_or_obsolete()
    return answers


def introspect(
    *, service_provider: ServiceProvider, untrusted_token: str, now: datetime
) -> Mapping[str, Any]:
    """`verifier.services.introspection.introspect`."""
    CLOCK.check()
    return run_to_end(
        introspection.introspect(
            WebProcess(now),
            service_provider=service_provider,
            untrusted_token=untrusted_token,
            now=now,
        )
    )


class WebProcess:
    """The `VerifierRuntime` of one call. Its coroutines block and never wait for a loop."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._keys: Mapping[str, TokenKey] | None = None

    def state_read_at(self) -> ClockReading:
        replay_cache_lease.LEASE.check_halt()
        # All state is read after this moment.
        return ClockReading.now()

    async def wait_for_fresh_state(self) -> ClockReading:
        return self.state_read_at()

    def replay_epoch(self) -> ReplayEpoch:
        with _or_unavailable():
            replay_epoch = replay_cache_lease.LEASE.current()
            # After a change of epoch, record which decisions of the old
            # one this process acknowledged.
            ACKNOWLEDGED.save(before=replay_epoch.number)
        return replay_epoch

    def token_keys(self) -> Mapping[str, TokenKey]:
        if self._keys is None:
            with _or_unavailable():
                self._keys = token_keys(now=self._now)
        return self._keys

    async def cached_token(self, jti: str) -> CachedToken | None:
        with _or_unavailable():
            try:
                return known_of(token_state(jti))
            except InvalidTokenError:
                return None

    async def evaluate(self, script: Script, called: ScriptCall) -> Reply:
        if not settings.REDIS_URL:
            raise TemporarilyUnavailableError("The replay cache is unavailable. Try again shortly.")
        return read_acknowledged(
            script, called, _servers(settings.REDIS_URL).evaluate(script, *called)
        )

    def check_room(self) -> None:
        """Always room: the call has a thread of its own."""

    async def decide(self, asked: DecisionRequest) -> Outcome:
        with _or_unavailable():
            return decide_one(asked.call, asked.spent)

    async def run(self, unit: Callable[[], T], *, queue: str = "") -> T:
        with _or_unavailable():
            return unit()

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        run_to_end(work)

    def count(self, decision: str, error: str, reason: str) -> None:
        import_string(settings.DECISION_OBSERVER)(decision, error, reason)


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits for an event loop. Raises RuntimeError if it does."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # a StopIteration is untyped
    work.close()
    raise RuntimeError("a coroutine waited for an event loop in a process that has none")


@contextlib.contextmanager
def _or_unavailable() -> Iterator[None]:
    """Raise TemporarilyUnavailableError if the database is unavailable."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        # The transaction may have been committed and the proof spent, so a retry needs a new proof.
        logger.exception("verify could not reach the database")
        raise TemporarilyUnavailableError from error


@cache
def _servers(url: str) -> SyncServers:
    return SyncServers(url, expected_runs=lambda: replay_cache_lease.LEASE.last_epoch().servers)
