"""What a command returns, and the exit codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from agentauth.sdk.errors import GrantPendingError

DONE: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
WAITING: Final = 3
UNAVAILABLE: Final = 4

NEEDS_EXTRA: Final = "The command line needs further packages: pip install 'agentauth-sdk[cli]'"

CommandResult = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows for a terminal: `columns` names the members of each row, in order."""

    columns: Sequence[str]
    rows: Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A command's result and exit code. `table` replaces `result` when a person reads it."""

    result: CommandResult
    code: int = DONE
    table: Table | None = None


class TimeLimitError(AgentAuthError):
    """The command did not finish within --timeout."""

    code = "timeout"


class UsageError(AgentAuthError):
    """The arguments are wrong, do not fit together, or need a package that is missing."""

    code = "usage"


def code_of(error: AgentAuthError) -> int:
    """The exit code for an error."""
    if isinstance(error, GrantPendingError | TimeLimitError):
        return WAITING
    if isinstance(error, TemporarilyUnavailableError):
        return UNAVAILABLE
    return USAGE if isinstance(error, UsageError) else REFUSED
