"""Measures issuing tokens against a slow, limited key service: `python -m benchmarks.issuance …`.

For example `--signing delegated --rate 500 --seconds 120`. Open loop, each call with its own proof;
two registry processes, PostgreSQL, Redis, jobs and verifier as installed. benchmarks/README.md
explains the figures.
"""

import argparse
import base64
import contextlib
import itertools
import json
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey
from benchmarks.cpu_time import check_us, cpu_seconds
from benchmarks.issued_token_check import Checker
from benchmarks.load_generation import Crowd, Tally
from benchmarks.open_loop import open_loop, percentile
from benchmarks.system_under_test import WORKERS, MeasuredSystem, machine, place
from tests.live import ROOT
from tests.postgres import free_port

READ = {"type": "read", "resource": "calendar"}
# How long a key is in the key set before it signs (kms/lifetimes.py).
PUBLISHED_SECONDS = 130
WARM_RATE, WARM_SECONDS = 10.0, 10
# Seconds at the run's rate before measuring.
RAMP_SECONDS = 3
# By then every process has its own certified key.
CERTIFIED_SECONDS = 300
# Afterwards, at a lower rate, where every call should succeed again.
AFTER_SECONDS = 10


@dataclass(slots=True)
class Answers:
    """All answers: when due, how long they took (s), and the outcome; a 201 by its signing key.

    `checker` judges the issued tokens.
    """

    checker: Checker | None = None
    all: list[tuple[float, float, str]] = field(default_factory=list)
    kids: Counter[str] = field(default_factory=Counter)

    def tell(self, due: float, now: float, head: bytes, body: bytes) -> None:
        """Add an answer."""
        status = head[9:12].decode()
        self.all.append((due, now - due, status))
        if status == "201":
            issued = json.loads(body)
            token = issued["access_token"]
            self.kids[_kid(token)] += 1
            if self.checker:
                self.checker.put(issued["grant_id"], token)

    def times(self, status: str) -> list[float]:
        """Sorted seconds."""
        return sorted(seconds for _, seconds, said in self.all if said == status)

    def quarters(self, status: str) -> list[list[float]]:
        """Seconds, split into quarters by when the call was due."""
        first, last = min(each[0] for each in self.all), max(each[0] for each in self.all)
        parts: list[list[float]] = [[], [], [], []]
        for due, seconds, said in self.all:
            if said == status:
                parts[min(3, int(4 * (due - first) / max(last - first, 1e-9)))].append(seconds)
        return [sorted(part) for part in parts]


@dataclass(frozen=True, slots=True)
class Scene:
    """The system under test, and the processes whose CPU counts; `keys`: a key service, if any."""

    there: MeasuredSystem
    groups: Mapping[str, int]
    keys: str
    given: argparse.Namespace

    def counts(self) -> Counter[str]:
        """What the key service has been asked so far."""
        return Counter(_read(f"{self.keys}/counts")) if self.keys else Counter()

    def drive(self, answers: Answers, *, rate: float, seconds: float) -> tuple[Tally, float]:
        """Issue at `rate` for `seconds`; also returns the client's own lateness (p99, ms)."""
        url, agents = self.there.registry.url, self.there.crowd["agents"]
        requests = signed(url, agents, calls=max(1, int(rate * seconds)), rate=rate)
        # The server closes a connection idle for two seconds, perhaps just when a call is sent on
        # it.
        connections = max(1, min(self.given.connections, int(rate)))
        return open_loop(
            url, requests, rate=rate, batch=1, connections=connections, tell=answers.tell
        )


def signed(url: str, agents: list[dict[str, str]], *, calls: int, rate: float) -> list[bytes]:
    """Whole requests, on all cores, each with a proof for its sending time; agents take turns."""
    cores, starts = os.cpu_count() or 1, time.time()
    bounds = [calls * part // cores for part in range(cores + 1)]
    with ProcessPoolExecutor(cores) as pool:
        parts = [
            pool.submit(_signed, url, agents, range(first, last), rate, starts)
            for first, last in itertools.pairwise(bounds)
        ]
        return [request for part in parts for request in part.result()]


def _signed(
    url: str, agents: list[dict[str, str]], calls: range, rate: float, starts: float
) -> list[bytes]:
    signers = [LocalSigner(PrivateKey.from_pem(agent["agent_pem"].encode())) for agent in agents]
    made, host = [], url.removeprefix("http://")
    for call in calls:
        agent = call % len(agents)
        body = json.dumps({"grant_id": agents[agent]["grant_id"]}).encode()
        proof = make_proof(
            signers[agent],
            method="POST",
            url=f"{url}/v1/tokens",
            iat=int(starts + call / rate),
            jti=secrets.token_urlsafe(16),
            body=body,
        )
        head = (
            f"POST /v1/tokens HTTP/1.1\r\nHost: {host}\r\nDPoP: {proof}\r\nContent-Type: "
            "application/json\r\n"
        )
        made.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return made


@contextlib.contextmanager
def key_service(limit: int, latency_ms: float) -> Iterator[tuple[str, int]]:
    """The fake key service, running; its address and process id."""
    port = free_port()
    options = [f"--port={port}", f"--limit={limit}", f"--latency-ms={latency_ms}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.fake_key_service", *options], cwd=ROOT
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                _read(f"{url}/counts")
                break
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def scene(given: argparse.Namespace) -> Iterator[Scene]:
    """Everything under test, running."""
    with contextlib.ExitStack() as stack:
        env, groups, keys = {"TOKEN_SIGNING": given.signing, "KEY_BACKEND": given.home}, {}, ""
        if given.home == "vault":
            keys, groups["keys"] = stack.enter_context(key_service(given.limit, given.latency_ms))
            env |= {"VAULT_ADDR": keys, "VAULT_TOKEN": "the-fake-asks-for-none"}
        wish = {"agents": given.agents, "capabilities": [READ], "envelope": {}}
        there = stack.enter_context(
            place(database="postgres", lean=True, wish=wish, env=env, workers=1)
        )
        there.registry.start()
        stack.callback(there.registry.stop)
        assert there.registry.process
        assert there.server.process
        groups = {"registry": there.registry.process.pid, **there.others, **groups}
        yield Scene(there, groups | {"verifier": there.server.process.pid}, keys, given)


def warm(made: Scene) -> None:
    """Issue until every process signs in its final way and every thread has a database connection.

    Raises RuntimeError if a process does not get there.
    """
    deadline = time.monotonic() + CERTIFIED_SECONDS
    while True:
        answers = Answers()
        made.drive(answers, rate=WARM_RATE, seconds=WARM_SECONDS)
        refused = [status for _, _, status in answers.all if status != "201"]
        if made.given.signing == "direct" and not refused:
            break
        jwks = _read(f"{made.there.registry.url}/.well-known/jwks.json")
        certified = {key["kid"] for key in jwks["keys"] if "certificate" in key}
        if (
            answers.kids
            and set(answers.kids) <= certified
            and len(answers.kids) >= WORKERS
            and not refused
        ):
            break
        if time.monotonic() > deadline:
            raise RuntimeError(f"not warm: {answers.kids}, refused {Counter(refused)}")
    made.drive(Answers(), rate=made.given.rate, seconds=RAMP_SECONDS)


def rotating(made: Scene, beside: ThreadPoolExecutor) -> Future[Any]:
    """Publish the next token key so that it signs from mid-run on; start the run right after."""
    delay = made.given.seconds / 2 - PUBLISHED_SECONDS

    def rotate() -> None:
        time.sleep(max(0.0, delay))
        made.there.registry.manage("rotate_key", "token")

    rotated = beside.submit(rotate)
    if delay < 0:
        made.drive(Answers(), rate=WARM_RATE, seconds=-delay)
    return rotated


def measure(made: Scene) -> None:
    """Print the row and, if the key was rotated, what became of the tokens."""
    given = made.given
    warm(made)
    with ThreadPoolExecutor(1) as beside:
        checker = checking(made) if given.rotate else None
        rotated = rotating(made, beside) if given.rotate else None
        check, answers = check_us(), Answers(checker)
        calls, cpu = made.counts(), cpu_seconds(made.groups)
        tally, late_ms = made.drive(answers, rate=given.rate, seconds=given.seconds)
        spent = {name: seconds - cpu[name] for name, seconds in cpu_seconds(made.groups).items()}
        calls = made.counts() - calls
        print(row(given, tally, answers, late_ms, spent, calls), flush=True)
        print(f"\nA bare signature check: {check:.0f} µs before, {check_us():.0f} after.")
        print(
            f"Tokens by key: {', '.join(map(str, answers.kids.values()))}. Key service: "
            f"{dict(calls)}."
        )
        afterwards(made)
        if rotated:
            rotated.result()
        if checker:
            judged = checker.judged()
            waited = percentile(sorted(judged.waited), 99)
            print(
                f"Judged at once both ways: {judged.tokens} tokens, p99 {waited:.0f} ms after "
                "their answer."
                f" Failures: {dict(judged.failures) or 0}. 503 of the verifier, asked again: "
                f"{dict(judged.again) or 0}."
            )
    others = Counter(status for _, _, status in answers.all if status not in {"201", "503"})
    if tally.errors or others:
        print(f"Other answers: {dict(others)}, broken connections: {tally.errors}.")
        # The server's log is deleted with its directory.
        print(
            "".join(made.there.registry.log.read_text().splitlines(keepends=True)[-20:]),
            file=sys.stderr,
        )


def checking(made: Scene) -> Checker:
    """The process that judges the run's tokens."""
    crowd = made.there.crowd
    whose = {name: crowd[name] for name in ("client_id", "client_secret", "audience")}
    pems = {agent["grant_id"]: agent["agent_pem"] for agent in crowd["agents"]}
    return Checker(made.there.registry.url, made.there.server.url, Crowd(**whose, agents=[]), pems)


def afterwards(made: Scene) -> None:
    """Issue at half the limit or load, and print how long calls still failed."""
    after, rate = Answers(), max(1.0, min(made.given.limit or made.given.rate, made.given.rate) / 2)
    made.drive(after, rate=rate, seconds=AFTER_SECONDS)
    first = min(due for due, _, _ in after.all)
    bad = [due + seconds - first for due, seconds, status in after.all if status != "201"]
    print(
        f"Afterwards, at {rate:.0f}/s for {AFTER_SECONDS} s: {len(bad)} of {len(after.all)} "
        "not 201, the last after"
        f" {max(bad, default=0):.1f} s."
    )


def row(
    given: argparse.Namespace,
    tally: Tally,
    answers: Answers,
    late_ms: float,
    spent: Mapping[str, float],
    calls: Counter[str],
) -> str:
    """One line of Markdown."""
    good, busy = answers.times("201"), answers.times("503")
    other = tally.sent - len(good) - len(busy)
    quarters = ", ".join(f"{percentile(part, 99):.0f}" for part in answers.quarters("201"))
    cpu = ", ".join(
        f"{name} {seconds / max(1, len(good)) * 1e6:,.0f}" for name, seconds in spent.items()
    )
    asked = sum(calls[f"token {how}"] for how in ("signed", "refused", "read"))
    shares = " | ".join(f"{number / tally.sent:.2%}" for number in (len(good), len(busy), other))
    return (
        f"| {given.signing}, {given.home} | {given.rate:.0f}/s, {given.seconds} s | "
        f"{len(good) / tally.seconds:.0f} | {shares}"
        f" | {percentile(good, 50):.1f} | {percentile(good, 99):.1f} (client late "
        f"{late_ms:.1f}) | {percentile(good, 99.9):.1f}"
        f" | {quarters} | {percentile(busy, 50):.1f}, {percentile(busy, 99):.1f} | {cpu}"
        f" | {asked / tally.sent:.3f} | {asked / max(1, len(good)):.3f} |"
    )


def _kid(token: str) -> str:
    return str(json.loads(base64.urlsafe_b64decode(token.partition(".")[0] + "=="))["kid"])


def _read(url: str) -> Any:
    answer = httpx.get(url, timeout=10)
    answer.raise_for_status()
    return answer.json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signing", choices=("direct", "delegated"), default="direct")
    parser.add_argument(
        "--home", choices=("vault", "file"), default="vault", help="vault: the fake key service"
    )
    parser.add_argument("--rate", type=float, default=200, help="calls a second")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--limit", type=int, default=100, help="signatures a second that the key service makes"
    )
    parser.add_argument("--latency-ms", type=float, default=20, help="latency of the key service")
    parser.add_argument(
        "--agents", type=int, default=200, help="each has a limit of 20 calls a second"
    )
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument(
        "--rotate",
        action="store_true",
        help="rotate the token key in the middle, and verify each token at once",
    )
    given = parser.parse_args()
    os.environ.pop("DATABASE_URL", None)
    print(
        f"{machine()}; load generator on the same machine. {' '.join(sys.argv[1:])}\n\n"
        "| signing | load | issued/s | 201 | 503 | other | p50 ms | p99 ms | p99.9 ms | p99 "
        "by quarter | 503: p50, p99 ms"
        " | CPU µs per token | calls to the key service per call | per token |"
        "\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    with scene(given) as made:
        measure(made)


if __name__ == "__main__":
    main()
