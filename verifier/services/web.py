"""Verification in the web process: each call reads what it needs from the database, and its thread waits."""

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
from kms.certificates import token_keys
from registry.models import ServiceProvider
from registry.services.state import token_state
from verifier import flow
from verifier.flow import Answer
from verifier.requests import VerifyRequest
from verifier.services import home, introspection
from verifier.services.batch import answer_one
from verifier.services.clocks import CLOCK
from verifier.services.home import Tenure
from verifier.services.moment import Moment
from verifier.services.snapshots import Known, known_of
from verifier.services.turns import ALONE, Faults
from verifier.stores import Delivery
from verifier.stores.database import Asked, Outcome, decide_one
from verifier.stores.light import Called
from verifier.stores.scripts import Reply, Script
from verifier.stores.sync_connection import SyncServers
from verifier.stores.told import TOLD, read_told

logger = logging.getLogger(__name__)

T = TypeVar("T")


def verify(
    *,
    service_provider: ServiceProvider,
    request: VerifyRequest,
    delivery: Delivery | None = None,
    actor: Actor,
    now: datetime,
) -> Answer:
    """`verifier.flow.verify`."""
    return finished(
        flow.verify(
            Web(now),
            service_provider=service_provider,
            request=request,
            delivery=delivery,
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
    """The answers, one after the other, in the order of the questions."""
    faults, answers = Faults(), []
    for each in requests:
        now = clock()
        one = answer_one(
            Web(now),
            service_provider=service_provider,
            request=each,
            actor=actor,
            now=now,
            turn=ALONE,
            faults=faults,
        )
        answers.append(finished(one))
        if faults.in_a_row:
            # A connection that broke is not kept for the next one.
            connection.close_if_unusable_or_obsolete()
    return answers


def introspect(
    *, service_provider: ServiceProvider, untrusted_token: str, now: datetime
) -> Mapping[str, Any]:
    """`verifier.services.introspection.introspect`."""
    CLOCK.check()
    return finished(
        introspection.introspect(
            Web(now), service_provider=service_provider, untrusted_token=untrusted_token, now=now
        )
    )


class Web:
    """`verifier.flow.Means` of one call. Nothing here waits in an event loop: what is awaited is done when it returns."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._keys: Mapping[str, TokenKey] | None = None

    def look(self) -> Moment:
        home.LEASE.check_halt()
        # What is known is read from now on.
        return Moment.now()

    async def caught_up(self) -> Moment:
        return self.look()

    def tenure(self) -> Tenure:
        with _reached():
            tenure = home.LEASE.current()
            # Once after a move; a process that decides is told of the move here at the latest.
            TOLD.write_down(before=tenure.epoch)
        return tenure

    def token_keys(self) -> Mapping[str, TokenKey]:
        if self._keys is None:
            with _reached():
                self._keys = token_keys(now=self._now)
        return self._keys

    async def known(self, jti: str) -> Known | None:
        with _reached():
            try:
                return known_of(token_state(jti))
            except InvalidTokenError:
                return None

    async def evaluate(self, script: Script, called: Called) -> Reply:
        if not settings.REDIS_URL:
            raise TemporarilyUnavailableError("The replay cache is not here. Try again shortly.")
        return read_told(script, called, _servers(settings.REDIS_URL).evaluate(script, *called))

    def check_room(self) -> None:
        """Its thread is the room."""

    async def decide(self, asked: Asked) -> Outcome:
        with _reached():
            return decide_one(asked.call, asked.spent)

    async def run(self, unit: Callable[[], T], *, queue: str = "") -> T:
        with _reached():
            return unit()

    def afterwards(self, work: Coroutine[Any, Any, None]) -> None:
        finished(work)

    def count(self, decision: str, error: str, reason: str) -> None:
        import_string(settings.DECISION_OBSERVER)(decision, error, reason)


def finished(work: Coroutine[Any, Any, T]) -> T:
    """The outcome of a coroutine that waits for no event loop."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # of its type
    work.close()
    raise RuntimeError("something waited for an event loop in a process that has none")


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Raises TemporarilyUnavailableError where the database is not."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        # The transaction may have been committed and the proof spent: the agent makes a new proof.
        logger.exception("verify could not reach the database")
        raise TemporarilyUnavailableError from error


@cache
def _servers(url: str) -> SyncServers:
    return SyncServers(url, expected_runs=lambda: home.LEASE.held().servers)
