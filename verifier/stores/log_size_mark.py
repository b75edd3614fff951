"""The mark of the log's size in Redis (`aa:mark`), which reveals that the database was restored.

It is an `audit.checkpoints.rollback_check.Mark` as text and a MAC under SECRET_KEY. Without the
MAC, an attacker who can write into Redis could halt the registry with one key. No decision reads
it, and it may be lost: the audit store outside has the same size a minute later.
"""

import hmac
import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

from django.conf import settings
from django.utils.crypto import salted_hmac
from redis.exceptions import RedisClusterException, RedisError

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.checkpoints.rollback_check import Mark
from verifier.stores import redis_owner
from verifier.stores.redis_py_client import sync_client

logger = logging.getLogger(__name__)

KEY: Final = b"aa:mark"
_LABEL: Final = "agentauth/mark/v1"
# Forward only within one log: with two jobs, the slower must not move the mark back. Returns the
# previous value.
_ADVANCE: Final = """
local there = redis.call('GET', KEYS[1])
local name, size = string.match(there or '', '^(%S+) (%d+) ')
if there and there ~= ARGV[4] and name ~= ARGV[1] then return there end
if there ~= ARGV[4] and name == ARGV[1] and tonumber(size) >= tonumber(ARGV[2]) then return there end
redis.call('SET', KEYS[1], ARGV[3])
return there
"""  # noqa: E501
_T = TypeVar("_T")


def read_mark() -> Mark | None:
    """The mark; None if Redis has none of this registry. Raises TemporarilyUnavailableError."""
    return _parse_mark(_ask(_ours))


def advance_mark(mark: Mark, *, instead_of: Mark | None = None) -> Mark | None:
    """Move the mark forward and return the previous one.

    A mark of another log is kept unless it equals `instead_of`. A value that is no mark of this
    registry is replaced, but nothing is written into another registry's Redis. Raises
    TemporarilyUnavailableError.
    """
    if _ask(redis_owner.other_registry):
        return None
    there = _ask(lambda client: client.get(KEY))
    found = _parse_mark(there)
    replaced = there if there is not None and found in (None, instead_of) else b""
    text = f"{mark.text} {_mac(mark.text, settings.SECRET_KEY)}"
    arguments = [mark.name or "-", mark.size, text, replaced]
    return _parse_mark(
        _ask(lambda client: client.register_script(_ADVANCE)(keys=[KEY], args=arguments))
    )


def _ours(client: Any) -> bytes | None:
    """The value; None in another registry's Redis, whose mark says nothing about this log."""
    if redis_owner.other_registry(client):
        # The epoch keeper logs it.
        return None
    found: bytes | None = client.get(KEY)
    return found


def _mac(text: str, key: str) -> str:
    return salted_hmac(_LABEL, text, secret=key, algorithm="sha256").hexdigest()


def _parse_mark(told: bytes | None) -> Mark | None:
    if told is None:
        return None
    try:
        text, _, mac = told.decode().rpartition(" ")
        keys = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
        if any(hmac.compare_digest(mac, _mac(text, each)) for each in keys):
            return Mark.parse(text)
    except (ValueError, TypeError):
        pass
    logger.error(
        "the Redis key aa:mark does not contain a mark of this registry; ignoring it. Check "
        "REDIS_URL"
    )
    return None


def _ask(question: Callable[[Any], _T]) -> _T:
    try:
        with sync_client() as client:
            return question(client)
    except (RedisError, RedisClusterException, OSError) as error:
        raise TemporarilyUnavailableError from error
