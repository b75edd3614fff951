"""The Redis connection when all is well, and when a server hangs, dies, forgets, moves or lags."""

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from agentauth.protocol.errors import AgentAuthError
from tests import redis_servers
from tests.certificates import self_signed
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.postgres import free_port
from verifier.stores import lua_scripts, redis_keys
from verifier.stores.lua_scripts import Code, Reply
from verifier.stores.redis_client import MOST_IN_FLIGHT, RedisConnection
from verifier.stores.redis_servers import ForgetfulServerError, RedisAwayError, Servers
from verifier.tests.calls import (
    NOW,
    QUICK,
    assert_call_fails,
    begin,
    heals,
    mark,
    on_loop,
    refusal,
    use,
)


@pytest.fixture
def server() -> Iterator[redis_servers.Server]:
    """A server that the test may damage."""
    with redis_servers.server() as started:
        yield started


@pytest.fixture
def proxy(server: redis_servers.Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.port) as proxy:
        on_loop(server.registry_url, begin)
        yield proxy


def through(proxy: FaultProxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}"


@pytest.mark.redis
def test_calls_of_many_tasks_are_each_given_their_own_answer(redis_url: str) -> None:
    async def work(servers: Servers) -> None:
        await begin(servers)
        grants = [uuid.uuid4() for _ in range(900)]
        replies = await asyncio.gather(
            *(
                use(servers, grant, interval=number, deadline=10)
                for number, grant in enumerate(grants, 1)
            )
        )
        assert [reply.tat_us for reply in replies] == [NOW + number for number in range(1, 901)]

    on_loop(redis_url, work)


@pytest.mark.redis
def test_a_caller_that_gave_up_leaves_the_others_in_step(redis_url: str) -> None:
    async def work(servers: Servers) -> None:
        await begin(servers)
        grant = uuid.uuid4()
        await use(servers, grant)
        tasks = [
            asyncio.create_task(use(servers, uuid.uuid4(), interval=n, deadline=5))
            for n in range(1, 101)
        ]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        for number, reply in enumerate(done, 1):
            if (number - 1) % 3:
                assert isinstance(reply, Reply)
                assert reply.tat_us == NOW + number
            else:
                assert isinstance(reply, asyncio.CancelledError)

    on_loop(redis_url, work)


@pytest.mark.redis
def test_a_server_that_lost_its_scripts_is_given_them_again(
    redis_url: str, redis_servers_running: redis_servers.Server | redis_servers.Cluster
) -> None:
    async def work(servers: Servers) -> None:
        await begin(servers)
        grants = [uuid.UUID(int=shard) for shard in range(redis_keys.SHARDS)]
        for grant in grants:
            await use(servers, grant)
        for node in redis_servers_running.nodes:
            node.client().script_flush()
        replies = await asyncio.gather(*(use(servers, grant, deadline=5) for grant in grants))
        assert [reply.number for reply in replies] == [2] * redis_keys.SHARDS

    on_loop(redis_url, work)


@pytest.mark.redis
def test_RF_6_a_frozen_server_is_waited_for_no_longer_than_the_deadline(
    server: redis_servers.Server,
) -> None:
    async def work(servers: Servers) -> None:
        await begin(servers)
        grant = uuid.uuid4()
        await use(servers, grant, jti="one")
        server.freeze()
        # 64 calls in flight without a reply: all fail, and none becomes a yes.
        await asyncio.gather(
            *(assert_call_fails(use(servers, grant, deadline=QUICK)) for _ in range(64))
        )
        whys = [
            (await assert_call_fails(use(servers, grant, deadline=QUICK))).why for _ in range(400)
        ]
        # In the end calls fail at once, except the one that checks whether the server is back.
        assert whys.count("it failed a moment ago") > 300
        server.thaw()
        assert (await heals(servers, grant)).code is Code.OK
        assert (await use(servers, grant, jti="one")).code is Code.REPLAYED
        replies = await asyncio.gather(*(use(servers, grant) for _ in range(20)))
        assert {reply.code for reply in replies} == {Code.OK}

    on_loop(server.registry_url, work)


@pytest.mark.redis
def test_RF_6_while_a_server_rests_one_call_at_a_time_looks(server: redis_servers.Server) -> None:
    async def work(servers: Servers) -> None:
        await begin(servers)
        server.freeze()
        for _ in range(10):
            await assert_call_fails(use(servers, uuid.uuid4(), deadline=QUICK))
        # It looks a second apart at most; a process that stands still meanwhile needs longer.
        until = time.monotonic() + 60
        looked = 0
        while time.monotonic() < until and looked < 2:
            whys = [
                error.why
                for error in await asyncio.gather(
                    *(
                        assert_call_fails(use(servers, uuid.uuid4(), deadline=QUICK))
                        for _ in range(20)
                    )
                )
            ]
            waited = [why for why in whys if why != "it failed a moment ago"]
            assert len(waited) <= 1
            looked += len(waited)
            await asyncio.sleep(0.02)
        assert looked == 2

    on_loop(server.registry_url, work)


@pytest.mark.redis
def test_RF_5_a_server_that_was_killed_and_is_empty_is_not_asked(
    server: redis_servers.Server,
) -> None:
    runs: set[str] = set()

    async def work(servers: Servers) -> None:
        await begin(servers)
        runs.add(server.identity)
        grant = uuid.uuid4()
        assert (await use(servers, grant, jti="one")).code is Code.OK
        server.kill()
        while (
            await assert_call_fails(use(servers, grant, deadline=QUICK))
        ).why != "it failed a moment ago":
            pass
        server.start()
        # It is another server, even if it is marked with the epoch.
        other = Servers(server.registry_url)
        await mark(other, 1)
        other.close()
        refusals: list[RedisAwayError] = []
        until = time.monotonic() + 20
        while (
            sum(isinstance(each, ForgetfulServerError) for each in refusals) < 3
            and time.monotonic() < until
        ):
            refusals.append(await assert_call_fails(use(servers, grant, jti="one")))
            await asyncio.sleep(0.01)
        assert any(isinstance(each, ForgetfulServerError) for each in refusals)
        assert server.client().xlen(redis_keys.events_key(redis_keys.shard_of(grant))) == 0
        # A new epoch accepts the server as it is.
        runs.clear()
        other = Servers(server.registry_url)
        await mark(other, 2)
        other.close()
        runs.add(server.identity)
        assert (await heals(servers, grant)).code is Code.LOST

    on_loop(server.registry_url, work, expected_runs=lambda: frozenset(runs))


@pytest.mark.redis
def test_RF_5_another_server_is_looked_at_again_but_not_at_every_call(
    server: redis_servers.Server,
) -> None:
    async def work(servers: Servers) -> None:
        refusals = [await assert_call_fails(use(servers, uuid.uuid4())) for _ in range(300)]
        assert isinstance(refusals[0], ForgetfulServerError)

    on_loop(server.registry_url, work, expected_runs=lambda: frozenset({"another"}))
    assert 2 <= server.client().info("stats")["total_connections_received"] < 30


@pytest.mark.redis
def test_RF_5_a_server_that_forgot_is_found_out_by_its_epoch_too(
    server: redis_servers.Server,
) -> None:
    async def work(servers: Servers) -> None:
        await begin(servers)
        grant = uuid.uuid4()
        await use(servers, grant, jti="one")
        server.client().flushall()
        assert (await use(servers, grant, jti="one")).code is Code.LOST

    on_loop(server.registry_url, work)


@pytest.mark.redis
@pytest.mark.parametrize("mode", ["delay", "noreply", "blackhole", "reset"])
def test_a_late_answer_never_answers_another_call(mode: str, proxy: FaultProxy) -> None:
    async def work(servers: Servers) -> None:
        number = 0
        for _ in range(3):
            await heals(servers, uuid.uuid4())
            proxy.delay_seconds = 0.08
            proxy.mode = mode
            await asyncio.gather(
                *(assert_call_fails(use(servers, uuid.uuid4(), deadline=QUICK)) for _ in range(8))
            )
            proxy.mode = "pass"
            # Delayed replies arrive now, while other calls are in flight.
            answered = 0
            for _ in range(60):
                number += 1
                try:
                    reply = await use(servers, uuid.uuid4(), interval=1000 + number)
                except RedisAwayError:
                    await asyncio.sleep(0.02)
                    continue
                assert reply.tat_us == NOW + 1000 + number
                answered += 1
            assert answered

    on_loop(through(proxy), work)


@pytest.mark.redis
def test_a_call_that_ran_although_its_answer_was_lost_is_not_repeated(
    proxy: FaultProxy, server: redis_servers.Server
) -> None:
    async def work(servers: Servers) -> None:
        grant = uuid.uuid4()
        await use(servers, grant)
        proxy.mode = "noreply"
        await assert_call_fails(use(servers, grant, jti="lost", deadline=QUICK))
        proxy.mode = "pass"
        await heals(servers, uuid.UUID(int=grant.int ^ 1))
        # It ran once: its proof is spent, and there is one event.
        assert server.client().xlen(redis_keys.events_key(redis_keys.shard_of(grant))) == 2
        assert (await use(servers, grant, jti="lost")).code is Code.REPLAYED

    on_loop(through(proxy), work)


@pytest.mark.redis
def test_beyond_the_most_in_flight_calls_fail_at_once(server: redis_servers.Server) -> None:
    async def work(servers: Servers) -> None:
        await begin(servers)
        server.freeze()
        calls = [
            asyncio.create_task(use(servers, uuid.uuid4(), deadline=60))
            for _ in range(MOST_IN_FLIGHT)
        ]
        await asyncio.sleep(0)
        assert (
            await assert_call_fails(use(servers, uuid.uuid4(), deadline=5))
        ).why == "too many calls at once"
        server.thaw()
        assert {reply.code for reply in await asyncio.gather(*calls)} == {Code.OK}

    on_loop(server.registry_url, work)


@pytest.mark.redis
def test_a_call_with_less_time_is_not_kept_waiting_by_those_with_more(
    server: redis_servers.Server,
) -> None:
    async def work(servers: Servers) -> None:
        await begin(servers)
        server.freeze()
        patient = asyncio.create_task(use(servers, uuid.uuid4(), deadline=60))
        await asyncio.sleep(0.01)
        await assert_call_fails(use(servers, uuid.uuid4(), deadline=QUICK))
        # They share a connection, which is dropped, so the patient call fails too.
        await assert_call_fails(patient)

    on_loop(server.registry_url, work)


@pytest.mark.redis
@pytest.mark.parametrize("user", ["", "verifier"])
def test_redis_password_is_used_and_a_wrong_one_is_unavailable(user: str) -> None:
    with redis_servers.server(requirepass="an0ther" if user else "p@ss:w0rd") as server:
        client = server.client()
        if user:
            client.execute_command(
                "ACL", "SETUSER", user, "on", ">p@ss:w0rd", "~aa:*", "+@all", "-config"
            )

        async def work(servers: Servers) -> None:
            await begin(servers)
            assert (await use(servers, uuid.uuid4())).code is Code.OK

        on_loop(f"redis://{user}:p%40ss%3Aw0rd@127.0.0.1:{server.port}/3", work)
        assert set(client.info("keyspace")) == {"db3"}
        for wrong in (f"{user}:wrong@", ""):
            url = f"redis://{wrong}127.0.0.1:{server.port}"
            refused = on_loop(url, refusal)
            assert "refused" in refused.why
            assert "w0rd" not in f"{refused.why} {refused.description}"


@pytest.mark.redis
@pytest.mark.parametrize("program", redis_servers.PROGRAMS)
def test_over_tls_only_a_server_we_trust_is_asked(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = self_signed(tmp_path, "127.0.0.1")
    port = free_port()
    files = {
        "tls_cert_file": str(certificate),
        "tls_key_file": str(tmp_path / "proxy.key"),
        "tls_ca_cert_file": str(certificate),
    }
    with redis_servers.server(
        program, tls_port=str(port), tls_auth_clients="no", **files
    ) as server:
        url = f"rediss://127.0.0.1:{port}"
        assert on_loop(url, refusal).why == "no connection"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        on_loop(url, begin)
        # Its certificate is for another name.
        assert on_loop(f"rediss://localhost:{port}", refusal).why == "no connection"
        assert on_loop(f"rediss://127.0.0.1:{server.port}", refusal)


@pytest.mark.redis
@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_may_drop_keys_for_memory_is_refused(policy: str) -> None:
    with redis_servers.server(maxmemory_policy=policy) as server:
        refused = on_loop(server.registry_url, refusal)
        assert "noeviction" in refused.why


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


# A complete greeting; a test adds one reply that was not asked for.
GREETING = b"+OK\r\n" + bulk(b"run_id:abc\r\nmaster_replid:def\r\nmaxmemory_policy:noeviction\r\n")
GREETING += b"+sha\r\n" * len(lua_scripts.SCRIPTS)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "its answer is not in the Redis protocol"),
        (b"+OK\r\n" * 5, "the connection was lost"),
        (b"", "the connection was lost"),
        (GREETING + b"+OK\r\n", "the connection was lost"),
        (
            GREETING.replace(b"master_replid", b"master_nobody"),
            "it does not report its run id and replication id",
        ),
    ],
    ids=["http", "no greeting", "nothing", "too much", "nameless"],
)
def test_server_that_is_not_redis_is_unavailable_and_disconnected(answer: bytes, why: str) -> None:
    accepted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        await reader.read(10)
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def main() -> None:
        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        servers = Servers(f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        try:
            for _ in range(2):
                assert (await assert_call_fails(use(servers, uuid.uuid4()))).why == why
        finally:
            servers.close()
            listening.close()
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert accepted == 2


def test_unreachable_redis_is_unavailable_without_details() -> None:
    refused = on_loop(f"redis://127.0.0.1:{free_port()}", refusal)
    assert refused.code == "temporarily_unavailable"
    assert refused.description == "The service cannot answer right now. Try again shortly."
    assert isinstance(refused, AgentAuthError)


def test_early_redis_reply_answers_no_later_call() -> None:
    async def work() -> None:
        line = RedisConnection(Mock())
        line.connection_made(Mock())
        asked = line.ask(b"", asyncio.get_running_loop().time() + 5)
        line.data_received(b"+OK\r\n")
        with pytest.raises(RedisAwayError, match=r"^temporarily_unavailable"):
            await asyncio.wait_for(asked, 1)

    asyncio.run(work())
