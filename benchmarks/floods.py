"""Measures how far outsiders slow authenticated callers: `python -m benchmarks.floods`.

Run it alone on the machine. Authenticated callers send as fast as they are answered, in short
turns; in every other turn outsiders send `--rate` unauthenticated requests a second. Prints one
Markdown row per flood: the callers' rate in both kinds of turns, the share kept (median of
neighbouring turns), and whether that is at least 80 %.
"""

import argparse
import multiprocessing
import os
import secrets
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from agentauth.protocol.keys import LocalSigner, PrivateKey
from benchmarks.flood_requests import FLOODS, READ, Flood, Target, own_data
from benchmarks.load_generation import Question, requests_in, write_requests
from benchmarks.open_loop import open_loop
from benchmarks.system_under_test import WORKERS, MeasuredSystem, machine, place

AGENTS = 100
CONNECTIONS, STRANGERS = 8, 128
# The required share of the calm rate.
KEPT = 0.8
# Seconds of outsiders alone, to measure their cost.
ALONE = 3
# Seconds a flood runs before its turn begins.
SETTLE = 0.5
# Every address of RFC 2544's network may be an outsider's; this benchmark is the proxy that names
# them.
ENV = {"TRUSTED_PROXIES": "1"}


@dataclass(frozen=True, slots=True)
class Turn:
    """Right answers a second, their p99 (ms), refused calls, and connections that ended.

    A server with many connections announces the end in the answer before; the client does not look.
    """

    rate: float
    p99: float
    refused: int
    ended: int


def target_of(there: MeasuredSystem) -> Target:
    """The server that the floods target."""
    return Target(there.server.url, there.people(), there.crowd["agents"][0]["grant_id"])


def asked(there: MeasuredSystem, flood: Flood, calls: int) -> list[bytes]:
    """Calls of authenticated callers, each with a new proof."""
    if flood.lean:
        question = Question(READ)
        return requests_in(
            write_requests(
                there.directory, there.people(), question, url=there.server.url, calls=calls
            )
        )
    target = target_of(there)
    signers = [LocalSigner(PrivateKey.from_pem(pem.encode())) for pem, _ in target.crowd.agents]
    return [own_data(target, signers[call % len(signers)]) for call in range(calls)]


def sent(there: MeasuredSystem, flood: Flood, calls: int) -> list[bytes]:
    """Calls of outsiders, from one address or each from another."""
    target = target_of(there)
    made = [flood.make(target) for _ in range(calls)]
    return (
        [request.replace(b"\r\n", _forwarded(), 1) for request in made]
        if flood.many_addresses
        else made
    )


def _forwarded() -> bytes:
    a, b, c = secrets.token_bytes(3)
    return b"\r\nX-Forwarded-For: 198.%d.%d.%d\r\n" % (18 + a % 2, b, c)


def turn(there: MeasuredSystem, calls: list[bytes], strangers: list[bytes], rate: float) -> Turn:
    """Have all `calls` answered, beside the flood of `strangers`, if any."""
    flooding = multiprocessing.Process(
        target=_flood, args=(there.server.url, strangers, rate), daemon=True
    )
    if strangers:
        flooding.start()
        time.sleep(SETTLE)
    tally, _ = open_loop(there.server.url, calls, rate=None, batch=1, connections=CONNECTIONS)
    if strangers:
        flooding.terminate()
        flooding.join()
    right = tally.answered - tally.not_2xx
    return Turn(right / tally.seconds, tally.p99_ms, tally.not_2xx, tally.errors)


def _flood(url: str, requests: list[bytes], rate: float) -> None:
    while True:
        open_loop(url, requests, rate=rate, batch=1, connections=STRANGERS)


def stranger_us(there: MeasuredSystem, strangers: list[bytes], rate: float) -> tuple[float, float]:
    """CPU µs of all servers per outsider's request, with no other load, and the share that was not
    2xx.

    Without what idle servers use.
    """
    before, began = _cpu(there), time.monotonic()
    tally, _ = open_loop(there.server.url, strangers, rate=rate, batch=1, connections=STRANGERS)
    spent, seconds = _cpu(there) - before, time.monotonic() - began
    before = _cpu(there)
    time.sleep(seconds)
    return (spent - (_cpu(there) - before)) * 1e6 / tally.answered, tally.not_2xx / tally.answered


def _cpu(there: MeasuredSystem) -> float:
    return sum(seconds for name, seconds in there.cpu().items() if name != "jobs")


def measure(there: MeasuredSystem, name: str, given: argparse.Namespace) -> str:
    """One row. The order within a pair of turns alternates, since the machine's speed may drift."""
    flood = FLOODS[name]
    guess = turn(there, asked(there, flood, 200), [], given.rate).rate
    calm: list[Turn] = []
    flooded: list[Turn] = []
    for number in range(given.pairs):
        for is_flooded in (number % 2 == 0, number % 2 == 1):
            calls = asked(there, flood, max(50, int(guess * given.seconds)))
            # Enough for a turn four times as long; a longer one sends them again.
            most = int(given.rate * (given.seconds * 4 + SETTLE)) if is_flooded else 0
            made = turn(there, calls, sent(there, flood, most), given.rate)
            (flooded if is_flooded else calm).append(made)
            guess = made.rate if not is_flooded else guess
    cost, refused = stranger_us(there, sent(there, flood, int(given.rate * ALONE)), given.rate)
    share = cost * given.rate / 1e6 / (os.cpu_count() or 1)
    return _row(name, flood, calm, flooded, f"{cost:,.0f} | {share:.1%} | {refused:.0%}")


def _row(
    name: str, flood: Flood, calm: Sequence[Turn], flooded: Sequence[Turn], strangers: str
) -> str:
    shares = [with_it.rate / without.rate for without, with_it in zip(calm, flooded, strict=True)]
    share = statistics.median(shares)
    refused, ended = (
        sum(getattr(each, of) for each in (*calm, *flooded)) for of in ("refused", "ended")
    )
    rates, tails = (
        [statistics.median(getattr(each, of) for each in side) for side in (calm, flooded)]
        for of in ("rate", "p99")
    )
    verdict = "yes" if share >= KEPT and not refused else "no"
    return (
        f"| {name} | {'verifier' if flood.lean else 'registry'} | {rates[0]:,.0f} | "
        f"{rates[1]:,.0f} |"
        f" {share:.0%} ({min(shares):.0%}–{max(shares):.0%}) | {tails[0]:.1f} | "
        f"{tails[1]:.1f} | {refused}, {ended} |"
        f" {strangers} | {verdict} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--part", choices=FLOODS, action="append", help="repeatable; all parts by default"
    )
    parser.add_argument("--seconds", type=float, default=1.5, help="seconds of each turn")
    parser.add_argument(
        "--pairs", type=int, default=8, help="number of turns, with and without the flood"
    )
    parser.add_argument("--rate", type=float, default=300, help="strangers' requests a second")
    given = parser.parse_args()
    os.environ.pop("DATABASE_URL", None)
    print(f"{machine()}; {given.rate:.0f} requests of strangers a second.\n")
    print(
        "| flood | server | calm, answers/s | flooded, answers/s | share kept, median "
        "(min–max) | calm p99 ms |"
        " flooded p99 ms | proven calls refused, connections ended | CPU µs of a stranger's "
        "request | share of all cores | of these not 2xx | within 20 % |"
        "\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    chosen = given.part or list(FLOODS)
    wish = {"agents": AGENTS, "capabilities": [READ], "envelope": {}, "alg": "EdDSA"}
    for lean in (True, False):
        names = [name for name in chosen if FLOODS[name].lean is lean]
        if names:
            with place(
                database="postgres", lean=lean, wish=wish, workers=WORKERS, env=ENV
            ) as there:
                for name in names:
                    print(measure(there, name, given), flush=True)


if __name__ == "__main__":
    main()
