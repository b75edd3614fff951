"""Deciding in the replay cache that is chosen, for a process without an event loop."""

from functools import cache

from django.conf import settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from verifier.models import Home
from verifier.services import home
from verifier.stores import EarlyRefusal, Permit, Prepared, Recalled, Refuse
from verifier.stores.database import decide_one
from verifier.stores.redis import RedisStore
from verifier.stores.sync_connection import SyncServers
from verifier.stores.told import TOLD


def decide_now(call: Prepared, tenure: home.Tenure) -> Permit | Refuse | Recalled:
    """What comes of the call under `tenure`. Raises as `verifier.stores.database.decide_one`, and
    TemporarilyUnavailableError where this process cannot use the replay cache.
    """
    # Once after a move; a process that decides is told of the move here at the latest.
    TOLD.write_down(before=tenure.epoch)
    if tenure.kind == Home.Kind.DATABASE or isinstance(call, EarlyRefusal):
        return decide_one(call)
    if not settings.REDIS_URL:
        raise TemporarilyUnavailableError("The verifier is at home where this process cannot reach it.")
    return _redis(settings.REDIS_URL).apply(call)


@cache
def _redis(url: str) -> RedisStore:
    return RedisStore(SyncServers(url, expected_runs=lambda: home.LEASE.held().servers))
