"""Measures verification through the SDK, as a service provider calls it: `python -m
benchmarks.sdk_verifier`.

Threads share one `VerifierClient`, or with `--asyncio` tasks share one `AsyncVerifierClient`, and
ask a live verifier, `--calls` times about each of 100 tokens, in turn. Proofs are signed in
advance. Prints Markdown: calls a second, their latency, and the CPU per call of the client (this
process), the server and the rest (benchmarks/README.md).
"""

import argparse
import asyncio
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from agentauth.protocol.capability import parse_action
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.sdk.async_verifier import AsyncVerifierClient
from agentauth.sdk.verifier import VerifierClient
from benchmarks.cpu_time import check_us
from benchmarks.load_generation import METHOD, PATH, Crowd
from benchmarks.open_loop import percentile
from benchmarks.system_under_test import WORKERS, machine, place
from benchmarks.verify import READ

AGENTS = 100
# After this many calls each thread has its connection and the verifier knows each token.
WARM_CALLS = 4


@dataclass(slots=True)
class Answers:
    """Seconds of each yes, and how many calls ended otherwise."""

    times: list[float] = field(default_factory=list)
    failed: int = 0


Asking = Callable[[list[tuple[str, str]]], Answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200, help="about each token")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--asyncio", action="store_true", help="tasks in place of threads")
    given = parser.parse_args()
    os.environ.pop("DATABASE_URL", None)
    print(f"{machine()}; {WORKERS} verifier processes. {' '.join(sys.argv[1:])}\n", flush=True)
    print(
        "| run | calls/s | p50 ms | p99 ms | CPU µs per call | check µs | client ÷ check | failed |"
        f"\n{'|---' * 8}|",
        flush=True,
    )
    wish = {"agents": AGENTS, "capabilities": [READ], "envelope": {}}
    with place(database="postgres", lean=True, wish=wish) as there:
        for number in range(given.runs):
            crowd = there.people()
            with asking(there.server.url, crowd, given) as asked:
                asked(signed(crowd, WARM_CALLS))
                proofs = signed(crowd, given.calls)
                check, before, own = check_us(), there.cpu(), time.process_time()
                began = time.perf_counter()
                answers = asked(proofs)
                seconds = time.perf_counter() - began
                own, after = time.process_time() - own, there.cpu()
            groups = {"client": own} | {name: after[name] - before[name] for name in after}
            calls = AGENTS * given.calls
            cpu = {name: spent / calls * 1e6 for name, spent in groups.items()}
            print(
                f"| {number + 1} {row(answers, seconds, cpu, (check + check_us()) / 2)}", flush=True
            )


@contextmanager
def asking(url: str, crowd: Crowd, given: argparse.Namespace) -> Iterator[Asking]:
    """The function that asks about each proof once, over connections that stay open."""
    credentials = (url, crowd.client_id, crowd.client_secret)
    if not given.asyncio:
        with VerifierClient(*credentials) as client:
            yield partial(ask, client, crowd, threads=given.threads)
        return
    later = AsyncVerifierClient(*credentials)
    with asyncio.Runner() as runner:
        yield lambda proofs: runner.run(ask_in_tasks(later, crowd, proofs, given.threads))
        runner.run(later.close())


def signed(crowd: Crowd, calls: int) -> list[tuple[str, str]]:
    """Pairs of a token and a new proof: `calls` per token, the tokens in turn."""
    signers = [LocalSigner(PrivateKey.from_pem(pem.encode())) for pem, _ in crowd.agents]
    iat, url = int(time.time()), crowd.audience + PATH
    return [
        (
            token,
            make_proof(
                signer,
                method=METHOD,
                url=url,
                iat=iat,
                jti=secrets.token_urlsafe(16),
                access_token=token,
            ),
        )
        for _ in range(calls)
        for signer, (_, token) in zip(signers, crowd.agents, strict=True)
    ]


def ask(
    client: VerifierClient, crowd: Crowd, proofs: list[tuple[str, str]], threads: int
) -> Answers:
    """Ask about each proof once; each thread sends its next call once the last is answered."""
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    for each in proofs:
        waiting.put(each)
    action, url = parse_action(READ), crowd.audience + PATH
    parts = [Answers() for _ in range(threads)]

    def work(answers: Answers) -> None:
        while True:
            try:
                token, proof = waiting.get_nowait()
            except queue.Empty:
                return
            began = time.perf_counter()
            try:
                client.verify(token=token, proof=proof, method=METHOD, url=url, action=action)
            except AgentAuthError:
                answers.failed += 1
            else:
                answers.times.append(time.perf_counter() - began)

    started = [threading.Thread(target=work, args=(part,)) for part in parts]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    times = sorted(each for part in parts for each in part.times)
    return Answers(times, sum(part.failed for part in parts))


async def ask_in_tasks(
    client: AsyncVerifierClient, crowd: Crowd, proofs: list[tuple[str, str]], tasks: int
) -> Answers:
    """`ask` with tasks in place of threads."""
    waiting = iter(proofs)
    action, url = parse_action(READ), crowd.audience + PATH
    answers = Answers()

    async def work() -> None:
        for token, proof in waiting:
            began = time.perf_counter()
            try:
                await client.verify(token=token, proof=proof, method=METHOD, url=url, action=action)
            except AgentAuthError:
                answers.failed += 1
            else:
                answers.times.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(work())
    answers.times.sort()
    return answers


def row(answers: Answers, seconds: float, cpu: dict[str, float], check: float) -> str:
    """The cells after the run's number. `cpu`: group → µs per call, `client` among them."""
    times = answers.times
    groups = ", ".join(f"{name} {micros:,.0f}" for name, micros in cpu.items())
    return (
        f"| {len(times) / seconds:,.0f} | {percentile(times, 50):.1f} | {percentile(times, 99):.1f}"
        f" | {groups} | {check:.0f} | {cpu['client'] / check:.1f} | {answers.failed} |"
    )


if __name__ == "__main__":
    main()
