"""Bounded staleness: what a decision rests on, checked before deciding and before answering."""

from typing import Final

from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.fast_dataclass import per_call
from verifier.services import replay_cache_lease
from verifier.services.clock_readings import ClockReading
from verifier.services.replay_epochs import ReplayEpoch

# State older than this (s) decides nothing and answers nothing: it may miss a revocation.
STALE_SECONDS: Final = 5.0


@per_call(frozen=True, slots=True)
class DecisionBasis:
    """The state as of `began`, and the epoch under which the process may decide."""

    began: ClockReading
    replay_epoch: ReplayEpoch

    def check(self, spare: float = 0) -> None:
        """Raise TemporarilyUnavailableError if this is outdated, or will be in `spare` seconds."""
        check_age(self.began, spare)
        held = replay_cache_lease.LEASE.last_epoch(spare)
        if held is not self.replay_epoch and held != self.replay_epoch:
            raise TemporarilyUnavailableError("The replay cache has moved. Try again.")


def check_age(began: ClockReading, spare: float = 0) -> None:
    """Raise TemporarilyUnavailableError if state of `began` is stale, or will be in `spare` s."""
    if began.age() > STALE_SECONDS - spare:
        raise TemporarilyUnavailableError("This took too long. Try again.")
