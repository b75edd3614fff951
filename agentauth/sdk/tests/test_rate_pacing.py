"""Pacing: a client alone with its grant is never refused by the grant's rate."""

import asyncio
import random
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agentauth.protocol.errors import InvalidScopeError
from agentauth.protocol.usage_counters import Rate
from agentauth.sdk.client import AgentAuthClient
from agentauth.sdk.key_file import KeyFile
from agentauth.sdk.kms_signer import KmsSigner
from agentauth.sdk.rate_pacing import Pacing
from agentauth.sdk.registry_answers import Grant
from agentauth.sdk.tests.fake_registry import (
    CALENDAR,
    SP_ID,
    TERMS,
    URL,
    FakeRegistry,
    error,
    grant,
    registered,
    run,
)

SECOND = 1_000_000


@dataclass
class Clock:
    """A clock that only sleeping moves, for tasks that all sleep on it."""

    now_us: int = 1_000 * SECOND
    sleepers: list[tuple[int, int, asyncio.Future[None]]] = field(default_factory=list)

    def monotonic_ns(self) -> int:
        return self.now_us * 1_000

    async def sleep(self, seconds: float) -> None:
        due = self.now_us + round(seconds * SECOND)
        future = asyncio.get_running_loop().create_future()
        self.sleepers.append((due, len(self.sleepers), future))
        await future

    async def run(self, *work: Awaitable[None]) -> None:
        """Run to the end, moving the clock to the next sleeper whenever all tasks wait."""
        tasks = [asyncio.ensure_future(each) for each in work]
        while not all(task.done() for task in tasks):
            for _ in range(20):
                await REAL_SLEEP(0)
            waiting = sorted(each[:2] for each in self.sleepers if not each[2].done())
            if waiting:
                due, number = waiting[0]
                self.now_us = max(self.now_us, due)
                self.sleepers[number][2].set_result(None)
        for task in tasks:
            task.result()


REAL_SLEEP = asyncio.sleep


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    monkeypatch.setattr("agentauth.sdk.rate_pacing.time.monotonic_ns", clock.monotonic_ns)
    return clock


def limited(per_minute: int, burst: int) -> Grant:
    envelope = {"max_requests_per_minute": per_minute, "max_burst": burst}
    return Grant.of(grant(granted=TERMS | {"envelope": envelope}))


@dataclass
class Registry:
    """Judges each call at a random moment between request and answer, by the real rate."""

    clock: Clock
    rate: Rate
    chance: random.Random
    longest_us: int
    tat_us: int | None = None
    refused: int = 0
    allowed: list[int] = field(default_factory=list)

    async def judge(self) -> bool:
        await self.clock.sleep(self.chance.randint(0, self.longest_us) / SECOND)
        is_allowed = self.rate.wait_us(self.tat_us, self.clock.now_us) <= 0
        if is_allowed:
            self.tat_us = self.rate.advance(self.tat_us, self.clock.now_us)
            self.allowed.append(self.clock.now_us)
        else:
            self.refused += 1
        await self.clock.sleep(self.chance.randint(0, self.longest_us) / SECOND)
        return is_allowed


async def calls_in_a_row(pacing: Pacing, granted: Grant, registry: Registry, many: int) -> None:
    for _ in range(many):
        turn = await pacing.take_turn(granted)
        assert turn
        (turn.count if await registry.judge() else turn.give_back)()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("per_minute", "burst"), [(60, 1), (60, 2), (600, 10), (6000, 1)])
def test_calls_in_a_row_are_never_refused(
    ticking: Clock, per_minute: int, burst: int, seed: int
) -> None:
    granted = limited(per_minute, burst)
    registry = Registry(ticking, Rate(per_minute, burst), random.Random(seed), 40_000)
    asyncio.run(ticking.run(calls_in_a_row(Pacing(), granted, registry, 30)))
    assert (registry.refused, len(registry.allowed)) == (0, 30)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("burst", [2, 10])
def test_calls_at_once_are_never_refused_and_not_slow(
    ticking: Clock, burst: int, seed: int
) -> None:
    granted, pacing = limited(600, burst), Pacing()
    registry = Registry(ticking, Rate(600, burst), random.Random(seed), 40_000)
    began = ticking.now_us
    work = [calls_in_a_row(pacing, granted, registry, 4) for _ in range(25)]
    asyncio.run(ticking.run(*work))
    assert registry.refused == 0
    # 100 uses: the burst at once, then 10 a second.
    assert ticking.now_us - began < 11 * SECOND


def test_a_burst_goes_out_at_once(ticking: Clock) -> None:
    granted, pacing = limited(6, 3), Pacing()

    async def burst() -> None:
        for _ in range(3):
            await pacing.take_turn(granted)

    began = ticking.now_us
    asyncio.run(ticking.run(burst()))
    assert ticking.now_us == began


def test_calls_take_turns_in_the_order_of_asking(ticking: Clock) -> None:
    granted, pacing = limited(60, 1), Pacing()
    order: list[int] = []

    async def call(number: int) -> None:
        turn = await pacing.take_turn(granted)
        assert turn
        order.append(number)
        await ticking.sleep(0.1 * (number % 3))
        turn.count()

    asyncio.run(ticking.run(*(call(number) for number in range(9))))
    assert order == list(range(9))


def test_a_refused_call_gives_its_turn_back(ticking: Clock) -> None:
    granted, pacing = limited(6, 1), Pacing()

    async def work() -> None:
        for _ in range(3):
            turn = await pacing.take_turn(granted)
            assert turn
            turn.give_back()
            turn.count()

    began = ticking.now_us
    asyncio.run(ticking.run(work()))
    assert ticking.now_us == began


def test_a_refusal_by_rate_is_waited_for(ticking: Clock) -> None:
    granted, pacing = limited(60, 5), Pacing()

    async def work() -> None:
        turn = await pacing.take_turn(granted)
        assert turn
        turn.wait_for(7)
        await pacing.take_turn(granted)

    began = ticking.now_us
    asyncio.run(ticking.run(work()))
    assert ticking.now_us == began + 7 * SECOND


def test_slow_answers_do_not_hold_up_the_calls_after_them(ticking: Clock) -> None:
    granted, pacing = limited(60, 1), Pacing()

    async def slow_call() -> None:
        turn = await pacing.take_turn(granted)
        assert turn
        await ticking.sleep(30)
        turn.count()

    began = ticking.now_us
    asyncio.run(ticking.run(*(slow_call() for _ in range(10))))
    # Each is judged within a second, and a second later the next one may be.
    assert ticking.now_us - began == 48 * SECOND


def test_a_slow_call_that_was_refused_gives_its_turn_back(ticking: Clock) -> None:
    granted, pacing = limited(1, 1), Pacing()

    async def work() -> None:
        turn = await pacing.take_turn(granted)
        assert turn
        waiting = asyncio.ensure_future(pacing.take_turn(granted))
        await ticking.sleep(5)
        turn.give_back()
        await waiting

    began = ticking.now_us
    asyncio.run(ticking.run(work()))
    assert ticking.now_us - began == 5 * SECOND


def test_a_grant_without_a_rate_is_not_paced(ticking: Clock) -> None:
    pacing = Pacing()
    assert asyncio.run(pacing.take_turn(Grant.of(grant()))) is None


def test_a_cancelled_call_costs_no_turn(ticking: Clock) -> None:
    granted, pacing = limited(60, 1), Pacing()

    async def work() -> None:
        turn = await pacing.take_turn(granted)
        assert turn
        turn.count()
        waiting = asyncio.ensure_future(pacing.take_turn(granted))
        await REAL_SLEEP(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await pacing.take_turn(granted)

    began = ticking.now_us
    asyncio.run(ticking.run(work()))
    assert ticking.now_us == began + SECOND


# ---- through the client


def rated(registry: FakeRegistry, per_minute: int, burst: int) -> None:
    envelope = {"max_requests_per_minute": per_minute, "max_burst": burst}
    registry.grants = [grant(granted=TERMS | {"envelope": envelope})]


def paced_client(registry: FakeRegistry, tmp_path: Path, ticking: Clock) -> None:
    client = registered(registry, tmp_path)

    async def work() -> None:
        for _ in range(3):
            await client.call(SP_ID, "GET", "/v1/x")

    asyncio.run(ticking.run(work()))


def test_call_waits_for_its_turn(registry: FakeRegistry, tmp_path: Path, ticking: Clock) -> None:
    rated(registry, 6, 1)
    began = ticking.now_us
    paced_client(registry, tmp_path, ticking)
    assert ticking.now_us - began == 20 * SECOND


def test_a_requested_nonce_is_sent_in_the_same_turn(
    registry: FakeRegistry, tmp_path: Path, ticking: Clock
) -> None:
    rated(registry, 6, 3)
    asked = [0]

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.host != "api.sp.example" or registry.proofs[-1].nonce is not None:
            return None
        asked[0] += 1
        challenge = 'DPoP error="use_dpop_nonce", algs="EdDSA"'
        return error(401, "use_dpop_nonce", {"WWW-Authenticate": challenge, "DPoP-Nonce": "n1"})

    registry.script = script
    began = ticking.now_us
    paced_client(registry, tmp_path, ticking)
    assert (asked, ticking.now_us) == ([1], began)


def test_a_rate_used_up_by_another_process_is_waited_for_once(
    registry: FakeRegistry, tmp_path: Path, ticking: Clock
) -> None:
    rated(registry, 60, 1)
    trouble = [
        error(429, "envelope_exceeded", {"Retry-After": "4"}, reason="rate", retry_after=4),
    ]
    registry.script = lambda request: (
        trouble.pop() if request.url.host == "api.sp.example" and trouble else None
    )
    client = registered(registry, tmp_path)
    began = ticking.now_us
    answers: list[int] = []

    async def work() -> None:
        answers.append((await client.call(SP_ID, "GET", "/v1/x")).status_code)

    asyncio.run(ticking.run(work()))
    assert answers == [200]
    assert 4 * SECOND <= ticking.now_us - began < 5 * SECOND


def test_a_rate_that_allows_nothing_for_a_minute_holds_the_next_call(
    registry: FakeRegistry, tmp_path: Path, ticking: Clock
) -> None:
    rated(registry, 60, 5)
    trouble = [
        error(429, "envelope_exceeded", {"Retry-After": "60"}, reason="rate", retry_after=60),
    ]
    registry.script = lambda request: (
        trouble.pop() if request.url.host == "api.sp.example" and trouble else None
    )
    client = registered(registry, tmp_path)
    began, answers = ticking.now_us, list[int]()

    async def work() -> None:
        for _ in range(2):
            answers.append((await client.call(SP_ID, "GET", "/v1/x")).status_code)

    asyncio.run(ticking.run(work()))
    assert (answers, ticking.now_us - began) == ([429, 200], 60 * SECOND)


@pytest.mark.parametrize("asked", ["61", "999999999"])
def test_a_wait_that_no_rate_asks_for_holds_no_other_call(
    registry: FakeRegistry, tmp_path: Path, ticking: Clock, asked: str
) -> None:
    rated(registry, 60, 5)
    trouble = [error(429, "envelope_exceeded", {"Retry-After": asked}, reason="rate")]
    registry.script = lambda request: (
        trouble.pop() if request.url.host == "api.sp.example" and trouble else None
    )
    client = registered(registry, tmp_path)
    began, answers = ticking.now_us, list[int]()

    async def work() -> None:
        for _ in range(2):
            answers.append((await client.call(SP_ID, "GET", "/v1/x")).status_code)

    asyncio.run(ticking.run(work()))
    assert (answers, ticking.now_us - began) == ([429, 200], 0)


def test_a_call_without_a_token_gives_its_turn_back(
    registry: FakeRegistry, tmp_path: Path, ticking: Clock
) -> None:
    rated(registry, 1, 1)
    trouble = [error(400, "invalid_scope")]
    registry.script = lambda request: (
        trouble.pop() if request.url.path == "/v1/tokens" and trouble else None
    )
    client = registered(registry, tmp_path)
    began = ticking.now_us

    async def work() -> None:
        with pytest.raises(InvalidScopeError):
            await client.call(SP_ID, "GET", "/v1/x")
        await client.call(SP_ID, "GET", "/v1/x")

    asyncio.run(ticking.run(work()))
    assert ticking.now_us == began


def test_a_call_that_cannot_be_signed_gives_its_turn_back(
    registry: FakeRegistry, tmp_path: Path, ticking: Clock
) -> None:
    rated(registry, 1, 1)
    key, is_out = Ed25519PrivateKey.generate(), False
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(message: bytes) -> bytes:
        if is_out:
            raise ConnectionError("The key management service is out.")
        return key.sign(message)

    client = AgentAuthClient(URL, keys=KeyFile(tmp_path / "a.json", signer=KmsSigner(pem, sign)))
    client._registry.transport = httpx.MockTransport(registry)
    began = ticking.now_us

    async def work() -> None:
        nonlocal is_out
        await client.register(CALENDAR)
        await client.get_token(SP_ID)
        is_out = True
        with pytest.raises(ConnectionError):
            await client.call(SP_ID, "GET", "/v1/x")
        is_out = False
        await client.call(SP_ID, "GET", "/v1/x")

    asyncio.run(ticking.run(work()))
    assert ticking.now_us == began


def test_headers_alone_are_not_paced(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    rated(registry, 1, 1)
    client = registered(registry, tmp_path)
    for _ in range(3):
        run(client.authenticate_headers(SP_ID, "GET", "/v1/x"))
    assert slept == []
