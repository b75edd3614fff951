"""Which store is the verifier's home's."""

from functools import cache

from django.conf import settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from verifier.models import Home
from verifier.services import home
from verifier.services.home import Tenure
from verifier.stores import VerifierStore
from verifier.stores.database import DatabaseStore
from verifier.stores.redis import RedisStore
from verifier.stores.sync_connection import SyncServers
from verifier.stores.told import TOLD

_DATABASE: VerifierStore = DatabaseStore()


def store(tenure: Tenure) -> VerifierStore:
    """The store that decides under `tenure`. Raises TemporarilyUnavailableError for a home that this process cannot use."""
    # Once after a move; a process that decides is told of the move here at the latest.
    TOLD.write_down(before=tenure.epoch)
    if tenure.kind == Home.Kind.DATABASE:
        return _DATABASE
    if not settings.REDIS_URL:
        raise TemporarilyUnavailableError("The verifier is at home where this process cannot reach it.")
    return _redis(settings.REDIS_URL)


@cache
def _redis(url: str) -> VerifierStore:
    return RedisStore(SyncServers(url, expected_runs=lambda: home.LEASE.held().servers))
