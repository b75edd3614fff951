"""A loop that is busy with signatures says nothing about Redis."""

import asyncio
import time
import uuid

import pytest

from tests import redis_servers
from tests.fault_proxy import fault_proxy
from verifier.stores.connection import Servers
from verifier.stores.scripts import Code
from verifier.tests.calls import begin, on_loop, use


@pytest.mark.redis
def test_a_calls_time_begins_when_it_leaves() -> None:
    """The server takes half of the time it has; before that, the call waited for three times as long to be sent."""
    with redis_servers.server() as server, fault_proxy(server.port) as proxy:
        on_loop(server.url, begin)

        async def work(servers: Servers) -> None:
            await use(servers, uuid.uuid4())
            proxy.delay_seconds, proxy.mode = 0.03, "delay"
            call = asyncio.create_task(use(servers, uuid.uuid4(), deadline=0.12))
            await asyncio.sleep(0)
            block = time.sleep
            block(0.3)
            assert (await call).code is Code.OK

        on_loop(f"redis://127.0.0.1:{proxy.port}", work)
