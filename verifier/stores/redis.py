"""The home in Redis: spent proofs and rates live there, everything that must outlive it in the database."""

import logging
from typing import Final

from django.db import transaction

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.services import record_drafts
from verifier.services import home
from verifier.services.home import Tenure
from verifier.services.moment import Moment
from verifier.services.snapshots import Known, known_of
from verifier.stores import Permit, Recalled, Refuse, Spent, StoreCall, events
from verifier.stores.connection import DEADLINE_SECONDS
from verifier.stores.database import check_age, decide_one
from verifier.stores.light import (
    Called,
    Plan,
    check_reply,
    conclude,
    epoch_of,
    giving_back,
    is_light,
    judging,
    plan,
)
from verifier.stores.scripts import GIVE_BACK, JUDGE, Code, Reply, read_reply
from verifier.stores.state import state_of
from verifier.stores.sync_connection import SyncServers
from verifier.stores.told import TOLD

logger = logging.getLogger(__name__)

# For as long as Redis may take to answer, and some more, what is known must still hold when it is asked: what it decides is in
# the log at once.
SPARE_SECONDS: Final = 2 * DEADLINE_SECONDS


class RedisStore:
    """Decisions while the replay cache is Redis, for a process without an event loop."""

    def __init__(self, servers: SyncServers) -> None:
        self._servers = servers

    def apply(self, call: StoreCall) -> Permit | Refuse | Recalled:
        """A light call in one script; any other in the database, after its proof was spent in Redis."""
        began = Moment.now()
        state = state_of(call)
        known = None if state is None else known_of(state)
        if is_light(call, known):
            made = plan(call, known)
            home.LEASE.held(SPARE_SECONDS)
            reply = self._judged(made.called)
            decided = conclude(call, known, made, reply)
            try:
                check_lease(call.tenure)
                check_age(began)
            except TemporarilyUnavailableError:
                withhold(call, known, made, decided)
                raise
            return decided
        spent = held(self._judged(judging(call, known, mode=b"hold", entry=b"")))
        # A use that a mismatch took is not given back: its mark lets the same bytes pass again, and would give it back twice.
        outcome = decide_one(call, spent)
        if is_unused(spent, outcome):
            # After the commit, which may be of more than this, and fail: the next try finds the use still set aside.
            transaction.on_commit(lambda: self._give_back(call, known, spent), robust=True)
        return outcome

    def _judged(self, called: Called) -> Reply:
        reply = read_reply(self._servers.evaluate(JUDGE, *called))
        TOLD.hear(epoch_of(called), called[0], reply.number)
        return reply

    def _give_back(self, call: StoreCall, known: Known | None, spent: Spent) -> None:
        try:
            self._servers.evaluate(GIVE_BACK, *giving_back(call, known, spent))
        except TemporarilyUnavailableError:
            # The grant waits one interval longer than needed; no limit is passed.
            logger.warning("a use of a rate that was set aside could not be given back")


def held(reply: Reply) -> Spent:
    """What became of a hold. Raises TemporarilyUnavailableError."""
    unsure = None
    try:
        check_reply(reply)
    except TemporarilyUnavailableError as error:
        if reply.code is not Code.UNSURE:
            raise
        unsure = error
    return Spent(
        first=reply.code not in {Code.REPLAYED, Code.UNSURE},
        elsewhere=True,
        tat_us=reply.before_us,
        reserved_us=None if reply.tat_us == reply.before_us else reply.tat_us,
        unsure=unsure,
    )


def is_unused(spent: Spent, outcome: Permit | Refuse | Recalled) -> bool:
    """Whether the use set aside is to be given back: the database said no, or had said yes before.

    What is recalled was set aside for the first try, whose it stays.
    """
    unused = isinstance(outcome, Refuse) or (isinstance(outcome, Permit) and outcome.repeated)
    return spent.reserved_us is not None and unused


def withhold(call: StoreCall, known: Known | None, made: Plan, outcome: Permit | Refuse) -> None:
    """Say in the log that this yes, whose event the script wrote, is not given. Raises django.db errors."""
    if isinstance(outcome, Permit) and known is not None:
        with transaction.atomic():
            record_drafts([events.withheld(call, made.event_id, known.state)])


def check_lease(tenure: Tenure) -> None:
    """Raises TemporarilyUnavailableError where the epoch ended while Redis was asked."""
    held = home.LEASE.held()
    if held is not tenure and held != tenure:
        raise TemporarilyUnavailableError
