"""Fixtures of the verifier's tests."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings

from tests import endpoint_modes, redis_servers
from verifier.tests import scene
from verifier.tests.epoch_moves import time
from verifier.tests.scene import place
from verifier.tests.script_stage import stage
from verifier.tests.streams import redis, redis_server, verifier

__all__ = ["place", "redis", "redis_server", "stage", "time", "verifier"]


@pytest.fixture(scope="session", params=["redis", "valkey", "cluster"])
def redis_servers_running(
    request: pytest.FixtureRequest,
) -> Iterator[redis_servers.Server | redis_servers.Cluster]:
    """One Redis, one Valkey, a cluster of three: all must behave alike."""
    if request.param == "cluster":
        with redis_servers.cluster() as cluster:
            yield cluster
    else:
        with redis_servers.server(f"{request.param}-server") as server:
            yield server


@pytest.fixture
def redis_url(redis_servers_running: redis_servers.Server | redis_servers.Cluster) -> str:
    """The URL of the servers, emptied before each test."""
    for node in redis_servers_running.nodes:
        node.client().flushall()
    return redis_servers_running.registry_url


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--endpoint") == "drf" and config.getoption("--replay-cache") == "database":
        return
    kept, left = endpoint_modes.split_items(config, items)
    items[:] = kept
    config.hook.pytest_deselected(items=left)
    for item in items:
        # Commit, because other threads must see what the test wrote.
        item.add_marker(pytest.mark.django_db(transaction=True), append=False)


@pytest.fixture(scope="session")
def own_redis(request: pytest.FixtureRequest) -> Iterator[redis_servers.Server | None]:
    if request.config.getoption("--replay-cache") == "database":
        yield None
        return
    with redis_servers.server() as server:
        yield server


@pytest.fixture(scope="session")
def running(
    django_db_setup: None, django_db_blocker: Any, own_redis: redis_servers.Server | None
) -> Iterator[endpoint_modes.RunningEndpoint]:
    """One endpoint for all tests; its caches are emptied between them."""
    with (
        django_db_blocker.unblock(),
        endpoint_modes.run_endpoint(own_redis.registry_url if own_redis else "") as made,
    ):
        yield made


@pytest.fixture(autouse=True)
def _endpoint_and_replay_cache(
    request: pytest.FixtureRequest, own_redis: redis_servers.Server | None
) -> Iterator[None]:
    lean = request.config.getoption("--endpoint") == "lean"
    if not (lean or own_redis):
        yield
        return
    request.getfixturevalue("transactional_db")
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        if own_redis is not None:
            own_redis.client().flushall()
            patch.setattr(settings, "REDIS_URL", own_redis.registry_url)
            patch.setattr(scene, "new_client", endpoint_modes.DrainingClient)
            stack.enter_context(endpoint_modes.use_redis_replay_cache(own_redis.registry_url))
        if lean:
            running = request.getfixturevalue("running")
            running.forget()
            patch.setattr(endpoint_modes.LeanClient, "endpoint", running, raising=False)
            patch.setattr(scene, "new_client", endpoint_modes.LeanClient)
        yield
