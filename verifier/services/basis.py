"""What a decision rests on, and the one question that is asked before anything is decided and before an answer leaves."""

from typing import Final

from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.values import per_call
from verifier.services import home
from verifier.services.home import Tenure
from verifier.services.moment import Moment

# Nothing is decided, and no decision told, by state that was read longer ago (s): a revocation since then may be unknown.
STALE_SECONDS: Final = 5.0


@per_call(frozen=True, slots=True)
class Basis:
    """The state as of `began`, and the leave to decide under `tenure`."""

    began: Moment
    tenure: Tenure

    def check(self, spare: float = 0) -> None:
        """Raises TemporarilyUnavailableError where this is no basis any more, or will not be one in `spare` seconds."""
        check_age(self.began, spare)
        held = home.LEASE.held(spare)
        if held is not self.tenure and held != self.tenure:
            raise TemporarilyUnavailableError("The replay cache has moved. Try again.")


def check_age(began: Moment, spare: float = 0) -> None:
    """Raises TemporarilyUnavailableError where what was read since `began` is too old, or will be in `spare` seconds."""
    if began.age() > STALE_SECONDS - spare:
        raise TemporarilyUnavailableError("This took too long. Try again.")
