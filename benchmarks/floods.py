"""Measures how far strangers slow proven callers down: `python -m benchmarks.floods`, alone on the machine.

Callers that proved themselves ask as fast as they are answered, first alone, then while others send `--rate` requests a
second that prove nothing. Prints Markdown: answers a second in both cases and their ratio, and what a stranger's request
costs beside a proven one (CPU µs of all server processes and the database).
"""

import argparse
import base64
import multiprocessing
import os
import secrets
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey
from benchmarks.load import Question, requests_in, write_requests
from benchmarks.open_loop import open_loop
from benchmarks.places import WORKERS, Place, machine, place

READ = {"type": "read", "resource": "calendar"}
AGENTS = 100
# Above what is answered: each connection asks again as soon as it has its answer.
UNBOUNDED = 100_000.0
CONNECTIONS, STRANGERS = 8, 32
OWN = "/v1/agents/me"
MAX_ACCEPT = 500
Requests = Callable[[Place, int], list[bytes]]


@dataclass(frozen=True, slots=True)
class Part:
    """Who asks which server what, and who floods it."""

    lean: bool
    proven: Requests
    flood: Requests


@dataclass(frozen=True, slots=True)
class Turn:
    """Right answers a second, and CPU µs of the servers for each proven call and for each request of the flood."""

    rate: float
    proven_us: float
    flood_us: float


def verifications(there: Place, calls: int) -> list[bytes]:
    """`POST /v1/verify` of a service provider that is known."""
    return requests_in(
        write_requests(there.directory, there.people(), Question(READ), url=there.server.url, calls=calls)
    )


def _changed(there: Place, calls: int, line: Callable[[], str]) -> list[bytes]:
    # Of each one the body is the same: nobody comes to look at it.
    [request] = verifications(there, 1)
    head, _, body = request.partition(b"\r\n\r\n")
    kept = [each for each in head.split(b"\r\n") if not each.startswith(b"Authorization")]
    return [b"\r\n".join([*kept, line().encode()]) + b"\r\n\r\n" + body for _ in range(calls)]


def wrong_secrets(there: Place, calls: int) -> list[bytes]:
    """The same with the provider's id and another secret each time."""
    client_id = there.people().client_id

    def line() -> str:
        pair = f"{client_id}:{secrets.token_urlsafe(32)}".encode()
        return "Authorization: Basic " + base64.b64encode(pair).decode()

    return _changed(there, calls, line)


def accepts(there: Place, calls: int) -> list[bytes]:
    """The same with wrong secrets and an Accept header that takes long to read, another each time."""

    def line() -> str:
        pair = base64.b64encode(f"{secrets.token_urlsafe(16)}:x".encode()).decode()
        ranges = ",".join([secrets.token_hex(8), *["a"] * (MAX_ACCEPT // 2 - 10)])
        return f"Authorization: Basic {pair}\r\nAccept: {ranges}"

    return _changed(there, calls, line)


def _own(there: Place, pems: list[str]) -> list[bytes]:
    host = there.server.url.removeprefix("http://")
    signers = [LocalSigner(PrivateKey.from_pem(pem.encode())) for pem in dict.fromkeys(pems)]
    made = []
    for call in range(len(pems)):
        proof = make_proof(
            signers[call % len(signers)],
            method="GET",
            url=there.server.url + OWN,
            iat=int(time.time()),
            jti=secrets.token_urlsafe(16),
        )
        made.append(f"GET {OWN} HTTP/1.1\r\nHost: {host}\r\nDPoP: {proof}\r\n\r\n".encode())
    return made


def agents(there: Place, calls: int) -> list[bytes]:
    """`GET /v1/agents/me` of registered agents."""
    pems = [pem for pem, _ in there.people().agents]
    return _own(there, [pems[call % len(pems)] for call in range(calls)])


def unproven_keys(there: Place, calls: int) -> list[bytes]:
    """The same with keys that no agent has, another each time."""
    return _own(there, [PrivateKey.generate().to_pem().decode() for _ in range(calls)])


PARTS = {
    "wrong secrets": Part(lean=True, proven=verifications, flood=wrong_secrets),
    "Accept headers": Part(lean=True, proven=verifications, flood=accepts),
    "unproven keys": Part(lean=False, proven=agents, flood=unproven_keys),
}


def turn(there: Place, part: Part, given: argparse.Namespace, guess: float, calm: Turn | None) -> Turn:
    """One run, flooded where `calm` is the one before it."""
    asked = part.proven(there, int(guess * given.seconds))
    sent = [] if calm is None else part.flood(there, int(given.rate * given.seconds * 2))
    flooding = multiprocessing.Process(target=_flood, args=(there.server.url, sent, given.rate), daemon=True)
    if sent:
        flooding.start()
        time.sleep(given.settle)
    before, began = _cpu(there), time.monotonic()
    tally, _ = open_loop(there.server.url, asked, rate=UNBOUNDED, batch=1, connections=CONNECTIONS)
    seconds, cpu = time.monotonic() - began, (_cpu(there) - before) * 1e6
    if sent:
        flooding.terminate()
        flooding.join()
    right = tally.answered - tally.not_2xx
    if right < tally.sent / 2:
        raise RuntimeError(f"proven callers were refused: {tally}")
    if calm is None:
        return Turn(right / seconds, cpu / right, 0.0)
    return Turn(
        right / seconds, calm.proven_us, alone_us(there, sent[: int(given.rate * given.seconds)], given)
    )


def alone_us(there: Place, sent: list[bytes], given: argparse.Namespace) -> float:
    """CPU µs of a stranger's request, with nobody beside; their address is over its limit by now."""
    before = _cpu(there)
    tally, _ = open_loop(there.server.url, sent, rate=given.rate, batch=1, connections=STRANGERS)
    return (_cpu(there) - before) * 1e6 / tally.answered


def _cpu(there: Place) -> float:
    return sum(seconds for name, seconds in there.cpu().items() if name != "jobs")


def _flood(url: str, requests: list[bytes], rate: float) -> None:
    open_loop(url, requests, rate=rate, batch=1, connections=STRANGERS)


def measure(name: str, given: argparse.Namespace) -> None:
    """Print a row for each pair of turns, and the medians."""
    part = PARTS[name]
    wish = {"agents": AGENTS, "capabilities": [READ], "envelope": {}, "alg": "EdDSA"}
    with place(database="postgres", lean=part.lean, wish=wish, workers=WORKERS) as there:
        guess = turn(there, part, given, 100.0, None).rate
        pairs = []
        for number in range(given.runs):
            calm = turn(there, part, given, guess, None)
            flooded = turn(there, part, given, guess, calm)
            pairs.append((calm, flooded))
            print(f"| {name} | {number + 1} {_row(*pairs[-1])}", flush=True)
    middle = [
        Turn(*(statistics.median(getattr(each, field) for each in side) for field in Turn.__slots__))
        for side in zip(*pairs, strict=True)
    ]
    print(f"| {name} | median {_row(*middle)}", flush=True)


def _row(calm: Turn, flooded: Turn) -> str:
    return (
        f"| {calm.rate:,.0f} | {flooded.rate:,.0f} | {flooded.rate / calm.rate:.0%} | {calm.proven_us:,.0f} |"
        f" {flooded.flood_us:,.0f} | {flooded.flood_us / calm.proven_us:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="again for several; all without")
    parser.add_argument("--seconds", type=int, default=5, help="of each turn")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=300, help="requests of strangers a second")
    parser.add_argument("--settle", type=float, default=4, help="seconds of flood before the turn")
    given = parser.parse_args()
    os.environ.pop("DATABASE_URL", None)
    print(f"{machine()}; {given.rate:.0f} requests of strangers a second from one address.\n")
    print(
        "| flood | run | calm, answers/s | flooded, answers/s | share | CPU µs of a proven call | of a stranger's | ratio |"
        "\n|---|---|---|---|---|---|---|---|"
    )
    for name in given.part or PARTS:
        measure(name, given)


if __name__ == "__main__":
    main()
