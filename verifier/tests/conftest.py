"""Fixtures of the verifier's tests."""

from collections.abc import Iterator

import pytest

from tests import redis_servers
from verifier.tests.moving import time
from verifier.tests.scene import place
from verifier.tests.streams import redis, redis_server, verifier

__all__ = ["place", "redis", "redis_server", "time", "verifier"]


@pytest.fixture(scope="session", params=["redis", "valkey", "cluster"])
def redis_servers_running(
    request: pytest.FixtureRequest,
) -> Iterator[redis_servers.Server | redis_servers.Cluster]:
    """One Redis, one Valkey, a cluster of three: what works on one works on all."""
    if request.param == "cluster":
        with redis_servers.cluster() as cluster:
            yield cluster
    else:
        with redis_servers.server(f"{request.param}-server") as server:
            yield server


@pytest.fixture
def redis_url(redis_servers_running: redis_servers.Server | redis_servers.Cluster) -> str:
    """The servers, empty."""
    for node in redis_servers_running.nodes:
        node.client().flushall()
    return redis_servers_running.url
