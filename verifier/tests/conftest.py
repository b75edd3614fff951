"""Fixtures of the verifier's tests."""

import contextlib
from collections.abc import Iterator

import pytest
from django.conf import settings

from tests import redis_servers
from verifier.tests.moving import time
from verifier.tests.scene import place
from verifier.tests.stage import stage
from verifier.tests.streams import redis, redis_server, verifier

__all__ = ["place", "redis", "redis_server", "stage", "time", "verifier"]


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--through") == "drf" and config.getoption("--home") == "database":
        return
    for item in items:
        if "place" in getattr(item, "fixturenames", ()) or item.get_closest_marker("django_db"):
            # Other threads are to see what the test wrote.
            item.add_marker(pytest.mark.django_db(transaction=True), append=False)


@pytest.fixture(scope="session")
def own_redis(request: pytest.FixtureRequest) -> Iterator[redis_servers.Server | None]:
    if request.config.getoption("--home") == "database":
        yield None
        return
    with redis_servers.server() as server:
        yield server


@pytest.fixture(autouse=True)
def _through(request: pytest.FixtureRequest, own_redis: redis_servers.Server | None) -> Iterator[None]:
    lean = request.config.getoption("--through") == "lean"
    if not (lean or own_redis) or not request.node.get_closest_marker("django_db"):
        yield
        return
    request.getfixturevalue("transactional_db")
    from tests import through
    from verifier.services import home
    from verifier.tests import scene

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(home, "LEASE", home.Lease())
        if own_redis is not None:
            own_redis.client().flushall()
            patch.setattr(settings, "REDIS_URL", own_redis.url)
            stack.enter_context(through.at_home_in_redis(own_redis.url))
        if lean:
            running = through.Running()
            stack.callback(running.stop)
            patch.setattr(through.LeanClient, "endpoint", running, raising=False)
            patch.setattr(scene, "new_client", through.LeanClient)
        yield
