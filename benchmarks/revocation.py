"""Measures how long a revoked token is still accepted: `python -m benchmarks.revocation`.

For each revocation two verifier processes under load are asked about the token every 5 ms, with new
proofs. Measured is the time from the answer of the revoking call to the last yes.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from benchmarks.load_generation import (
    BodyWriter,
    Crowd,
    Question,
    Tally,
    requests_in,
    write_requests,
)
from benchmarks.open_loop import open_loop, percentile
from benchmarks.system_under_test import MeasuredSystem, machine, place
from benchmarks.verify import READ
from tests.live import LiveVerifier

QUESTION = Question(READ)
ASK_SECONDS = 0.005
# Per process: yeses before the token is revoked, and consecutive noes after which no yes is
# expected.
YESES, NOES = 5, 40
# A yes after the hard bound (5 s) is a fault; the wait ends here.
GIVE_UP_SECONDS = 15
LOAD_AGENTS = 50
LOAD_SECONDS = 20
LOAD_CONNECTIONS = 8


class Watcher(threading.Thread):
    """Asks one process about one token until told to end. `last_yes`: its time (perf_counter)."""

    def __init__(self, url: str, crowd: Crowd, agent: tuple[str, str]) -> None:
        super().__init__(daemon=True)
        self.address = urlsplit(url)
        self.writer = BodyWriter(*agent, crowd.audience, QUESTION)
        self.headers = {"Authorization": crowd.basic, "Content-Type": "application/json"}
        self.ended = threading.Event()
        self.last_yes = 0.0
        self.yeses = self.noes_in_a_row = self.unanswered = 0

    def run(self) -> None:
        connection = HTTPConnection("127.0.0.1", self.address.port, timeout=GIVE_UP_SECONDS)
        headers = self.headers | {"Host": self.address.netloc}
        due = time.perf_counter()
        while not self.ended.is_set():
            connection.request("POST", "/v1/verify", self.writer.body(int(time.time())), headers)
            answer = connection.getresponse()
            said, now = json.loads(answer.read()), time.perf_counter()
            if answer.status != HTTPStatus.OK:
                self.unanswered += 1
            elif said["valid"]:
                self.last_yes, self.yeses, self.noes_in_a_row = now, self.yeses + 1, 0
            elif said.get("reason") == "revoked":
                self.noes_in_a_row += 1
            else:
                raise RuntimeError(f"refused for another reason: {said}")
            due = max(due + ASK_SECONDS, now)
            time.sleep(due - now)
        connection.close()

    def until(self, *, yeses: int = 0, noes: int = 0) -> None:
        """Wait for this many of each. Raises TimeoutError."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while self.yeses < yeses or self.noes_in_a_row < noes:
            if time.monotonic() > deadline or not self.is_alive():
                raise TimeoutError(
                    f"{self.address.netloc}: {self.yeses} yeses, {self.noes_in_a_row} noes"
                )
            time.sleep(ASK_SECONDS)


def revoke(registry_url: str, crowd: Crowd, token: str) -> float:
    """The service provider revokes the token; returns when the answer came (perf_counter)."""
    address = urlsplit(registry_url)
    connection = HTTPConnection("127.0.0.1", address.port, timeout=GIVE_UP_SECONDS)
    headers = {"Authorization": crowd.basic, "Content-Type": "application/x-www-form-urlencoded"}
    connection.request(
        "POST", "/v1/revoke", urlencode({"token": token}), headers | {"Host": address.netloc}
    )
    answer = connection.getresponse()
    answered_at = time.perf_counter()
    if answer.status != HTTPStatus.OK:
        raise RuntimeError(f"revoke answered {answer.status}: {answer.read()!r}")
    connection.close()
    return answered_at


def one(
    registry_url: str, urls: list[str], crowd: Crowd, agent: tuple[str, str]
) -> list[tuple[float, int]]:
    """Revoke one token. Per process: seconds until the last yes (0 if none), non-200 answers."""
    watchers = [Watcher(url, crowd, agent) for url in urls]
    for watcher in watchers:
        watcher.start()
    try:
        for watcher in watchers:
            watcher.until(yeses=YESES)
        answered_at = revoke(registry_url, crowd, agent[1])
        for watcher in watchers:
            watcher.until(noes=NOES)
    finally:
        for watcher in watchers:
            watcher.ended.set()
            watcher.join()
    return [(max(0.0, watcher.last_yes - answered_at), watcher.unanswered) for watcher in watchers]


def under_load(url: str, files: list[Path], rate: float) -> Tally:
    """The other agents' calls meanwhile, in a separate process."""
    return open_loop(url, requests_in(files), rate=rate, batch=1, connections=LOAD_CONNECTIONS)[0]


def round_of(
    there: MeasuredSystem,
    urls: list[str],
    given: argparse.Namespace,
    done: int,
    pool: ProcessPoolExecutor,
) -> tuple[list[list[tuple[float, int]]], list[Tally]]:
    """Revocations, from number `done` on, for as long as one portion of load lasts."""
    crowd = there.people()
    others = dataclasses.replace(crowd, agents=crowd.agents[:LOAD_AGENTS])
    loads: list[Future[Tally]] = []
    for number, url in enumerate(urls):
        folder = there.directory / f"load-{number}"
        folder.mkdir(exist_ok=True)
        calls = int(given.rate * LOAD_SECONDS)
        files = write_requests(folder, others, QUESTION, url=url, calls=calls)
        loads.append(pool.submit(under_load, url, files, given.rate))
    found = []
    for agent in crowd.agents[LOAD_AGENTS + done :]:
        if any(load.done() for load in loads):
            break
        found.append(one(there.registry.url, urls, crowd, agent))
    return found, [load.result() for load in loads]


def measure(there: MeasuredSystem, urls: list[str], given: argparse.Namespace) -> None:
    """Print a row for each process."""
    found: list[list[tuple[float, int]]] = []
    loads: list[Tally] = []
    with ProcessPoolExecutor(len(urls)) as pool:
        while len(found) < given.revocations:
            more, tallies = round_of(there, urls, given, len(found), pool)
            found, loads = found + more, loads + tallies
    for number in range(len(urls)):
        times = sorted(each[number][0] for each in found)
        load = loads[number :: len(urls)]
        rate = sum(tally.right(1) for tally in load) / sum(tally.seconds for tally in load)
        print(
            f"| {number + 1} | {len(times)} | {percentile(times, 50):.1f} | "
            f"{percentile(times, 99):.1f} | {times[-1] * 1000:.1f}"
            f" | {sum(each[number][1] for each in found)} | {rate:.0f} | "
            f"{sum(tally.wrong for tally in load)}"
            f" | {sum(tally.not_2xx + tally.errors for tally in load)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("lean", "drf-postgres"), default="lean")
    parser.add_argument("--revocations", type=int, default=200)
    parser.add_argument(
        "--rate", type=float, default=1000, help="calls a second meanwhile, to each process"
    )
    given = parser.parse_args()
    os.environ.pop("DATABASE_URL", None)
    lean = given.part == "lean"
    wish = {"agents": LOAD_AGENTS + given.revocations, "capabilities": [READ], "envelope": {}}
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(place(database="postgres", lean=lean, wish=wish, workers=1))
        urls = [there.server.url]
        if lean:
            second = LiveVerifier(
                there.registry, redis_url=there.registry.env["REDIS_URL"], workers=1
            )
            for server in (second, there.registry):
                server.start()
                stack.callback(server.stop)
            urls.append(second.url)
        print(
            f"{machine()}. {' '.join(sys.argv[1:])}\n\n"
            "| process | revocations | p50 ms | p99 ms | max ms | not 200 | load/s | load "
            "wrong | load failed |"
            "\n|---|---|---|---|---|---|---|---|---|",
            flush=True,
        )
        measure(there, urls, given)


if __name__ == "__main__":
    main()
