"""Measures other servers per API request: `python -m benchmarks.comparable_servers`.

Installs npm packages at fixed versions into a temporary folder and starts each server as one
Node.js process (peer.mjs); ours is one verifier process in the same run, under the same load
generator. Proofs are Ed25519, signed in advance, and sent once. Prints Markdown
(benchmarks/README.md).
"""

import argparse
import base64
import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey
from benchmarks import verify
from benchmarks.cpu_time import check_us, cpu_seconds
from benchmarks.load_generation import VALID, framed, with_wrk
from benchmarks.system_under_test import MeasuredSystem, machine, place
from tests.postgres import free_port

PACKAGES = ("oidc-provider@8.8.1", "jose@6.2.18", "redis@6.3.1")
SCRIPT = Path(__file__).with_name("peer.mjs")
AGENTS = 100
BASIC = base64.b64encode(b"client:secret").decode()


@dataclass(frozen=True, slots=True)
class Kind:
    """What one peer is asked: `path`, with a proof or as introspection; right answers hold
    `expected`.
    """

    path: str
    expected: str
    proof: bool = True


KINDS = {
    "oidc-dpop": Kind("/me", '"sub":'),
    "oidc-introspection": Kind("/token/introspection", '"active":true', proof=False),
    "jose": Kind("/payments", VALID),
}


class Peer:
    """One running server, and its tokens for our keys."""

    def __init__(self, name: str, folder: Path, redis_url: str) -> None:
        self.kind, self.url = KINDS[name], f"http://127.0.0.1:{free_port()}"
        self.signers = [LocalSigner(PrivateKey.generate()) for _ in range(AGENTS)]
        told = {
            "port": int(self.url.rpartition(":")[2]),
            "jkts": [signer.public.thumbprint for signer in self.signers],
        }
        self.process = subprocess.Popen(
            ["node", SCRIPT, folder, name, redis_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdin
        assert self.process.stdout
        with self.process.stdin, self.process.stdout:
            self.process.stdin.write(json.dumps(told))
            self.process.stdin.close()
            self.tokens = json.loads(self.process.stdout.readline())["tokens"]

    def requests(self, calls: int) -> Iterator[bytes]:
        """Whole requests, about each token in turn."""
        host, iat = self.url.removeprefix("http://"), int(time.time())
        for call in range(calls):
            signer, token = self.signers[call % AGENTS], self.tokens[call % AGENTS]
            if not self.kind.proof:
                body = f"token={token}"
                yield (
                    f"POST {self.kind.path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic "
                    f"{BASIC}\r\n"
                    "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: "
                    f"{len(body)}\r\n\r\n{body}"
                ).encode()
                continue
            proof = make_proof(
                signer,
                method="GET",
                url=self.url + self.kind.path,
                iat=iat,
                jti=secrets.token_urlsafe(16),
                access_token=token,
            )
            yield (
                f"GET {self.kind.path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: DPoP {token}\r\n"
                f"DPoP: {proof}\r\n\r\n"
            ).encode()

    def drive(self, file: Path, *, calls: int, connections: int, seconds: int) -> verify.Run:
        """Sign for this many calls and send them until the seconds are over."""
        file.write_bytes(b"".join(map(framed, self.requests(calls))))
        check, before = check_us(), cpu_seconds({"server": self.process.pid})["server"]
        tally = with_wrk(
            self.url,
            [file],
            batch=1,
            connections=connections,
            seconds=seconds,
            expected=self.kind.expected,
        )
        spent = cpu_seconds({"server": self.process.pid})["server"] - before
        judged = tally.answered - tally.not_2xx
        check = (check + check_us()) / 2
        cpu = {"server": spent / max(1, judged) * 1e6}
        return verify.Run(tally, judged, tally.right(1) / tally.seconds, cpu, check)


@contextlib.contextmanager
def peer(name: str, folder: Path, redis_url: str) -> Iterator[Peer]:
    """A running server. Raises ValueError if it does not start."""
    made = Peer(name, folder, redis_url)
    try:
        yield made
    finally:
        made.process.terminate()
        made.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--part", choices=KINDS, action="append", help="repeatable; all parts by default"
    )
    parser.add_argument("--seconds", type=int, default=10, help="seconds of each run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--connections", type=int, default=10)
    given = parser.parse_args(namespace=argparse.Namespace(pin=False))
    os.environ.pop("DATABASE_URL", None)
    print(
        f"{machine()}, Node.js {version()}, {', '.join(PACKAGES)}. {' '.join(sys.argv[1:])}\n",
        flush=True,
    )
    print(
        "| server, one process | requests/s | p50 ms | p99 ms | server CPU µs | ÷ check | "
        "rate ÷ ours | CPU ÷ ours | wrong or failed |"
        f"\n{'|---' * 9}|",
        flush=True,
    )
    part = verify.PARTS["lean"]
    wish = {"agents": part.agents, "capabilities": part.capabilities, "envelope": part.envelope}
    with (
        tempfile.TemporaryDirectory(prefix="agentauth-peers-") as made,
        place(database="postgres", lean=True, wish=wish, workers=1) as there,
    ):
        folder = Path(made)
        install(folder)
        ours = [verify.run(there, part, given, rate=None) for _ in range(given.runs)]
        print(row("verify", ours, ours), flush=True)
        for name in given.part or KINDS:
            print(row(name, measure(name, folder, there, given), ours), flush=True)


def measure(
    name: str, folder: Path, there: MeasuredSystem, given: argparse.Namespace
) -> list[verify.Run]:
    """The runs of one peer, each after a warm-up."""
    file = folder / "requests"
    with peer(name, folder, there.registry.env["REDIS_URL"]) as server:
        warm = server.drive(
            file,
            calls=verify.WARM_PROOFS,
            connections=given.connections,
            seconds=verify.WARM_SECONDS,
        )
        if server.kind.proof:
            check_replay(server, file)
        calls = int(warm.rate * verify.SPARE * given.seconds) + 1
        return [
            server.drive(file, calls=calls, connections=given.connections, seconds=given.seconds)
            for _ in range(given.runs)
        ]


def check_replay(server: Peer, file: Path) -> None:
    """Raises RuntimeError if the peer accepts a proof twice: it does not do comparable work."""
    file.write_bytes(framed(next(server.requests(1))) * 2)
    tally = with_wrk(
        server.url, [file], batch=1, connections=1, seconds=5, expected=server.kind.expected
    )
    if (tally.answered, tally.not_2xx) != (2, 1):
        raise RuntimeError(f"a proof that was sent twice: {tally}")


def install(folder: Path) -> None:
    """Install the packages into this folder. Raises CalledProcessError if npm fails."""
    (folder / "package.json").write_text("{}")
    quiet = ("--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact")
    subprocess.run(["npm", "install", *quiet, *PACKAGES], cwd=folder, check=True)


def version() -> str:
    """The version of Node.js."""
    return subprocess.run(
        ["node", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()


def row(name: str, runs: list[verify.Run], ours: list[verify.Run]) -> str:
    """Medians, also as multiples of `ours`; errors are added up."""
    rate = statistics.median(run.rate for run in runs)
    cpu = statistics.median(run.cpu["server"] for run in runs)
    rates = rate / statistics.median(run.rate for run in ours)
    cpus = cpu / statistics.median(run.cpu["server"] for run in ours)
    checks = statistics.median(run.checks for run in runs)
    p50, p99 = (
        statistics.median(getattr(run.tally, at) for run in runs) for at in ("p50_ms", "p99_ms")
    )
    failed = sum(run.tally.wrong + run.tally.not_2xx + run.tally.errors for run in runs)
    return (
        f"| {name} | {rate:,.0f} | {p50:.1f} | {p99:.1f} | {cpu:,.0f} | {checks:.1f}"
        f" | {rates:.2f} | {cpus:.2f} | {failed} |"
    )


if __name__ == "__main__":
    main()
