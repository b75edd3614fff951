"""The mark of the log's size in Redis (`aa:history`, an `audit.history.Mark` as text), which reveals a database that was set back.

No decision asks for it, and it may be lost: the store outside knows the same, a minute later.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from redis.exceptions import RedisClusterException, RedisError

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.history import Mark
from verifier.stores.sync_connection import sync_client

KEY: Final = b"aa:history"
# Forward only within one log: with two jobs, the slower must not move the mark back. Returns the previous value.
_ADVANCE: Final = """
local there = redis.call('GET', KEYS[1])
local name, size = string.match(there or '', '^(%S+) (%d+) ')
if name ~= ARGV[1] and there ~= ARGV[4] and there then return there end
if name == ARGV[1] and tonumber(size) >= tonumber(ARGV[2]) then return there end
redis.call('SET', KEYS[1], ARGV[3])
return there
"""
_T = TypeVar("_T")


def read_mark() -> Mark | None:
    """The mark, None if there is none. Raises TemporarilyUnavailableError if Redis does not answer or holds another value."""
    return _parsed(_ask(lambda client: client.get(KEY)))


def advance_mark(mark: Mark, *, instead_of: Mark | None = None) -> Mark | None:
    """Move the mark forward, and return the previous one.

    A mark of another log is kept, unless it equals `instead_of`. Raises TemporarilyUnavailableError.
    """
    replaced = instead_of.text if instead_of else ""
    arguments = [mark.name or "-", mark.size, mark.text, replaced]
    return _parsed(_ask(lambda client: client.register_script(_ADVANCE)(keys=[KEY], args=arguments)))


def _parsed(told: Any) -> Mark | None:
    try:
        return None if told is None else Mark.parse(told.decode())
    except ValueError:
        raise TemporarilyUnavailableError(
            "The Redis key aa:history does not hold a mark of this registry. Check that REDIS_URL names its Redis."
        ) from None


def _ask(question: Callable[[Any], _T]) -> _T:
    try:
        with sync_client() as client:
            return question(client)
    except (RedisError, RedisClusterException, OSError) as error:
        raise TemporarilyUnavailableError from error
