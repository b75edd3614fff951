"""Load for the verifier: signs distinct proofs right before a run, and wrk sends each once."""

import base64
import json
import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agentauth.protocol.dpop import WINDOW_SECONDS, make_proof
from agentauth.protocol.encoding import b64u_encode, sha256
from agentauth.protocol.keys import LocalSigner, PrivateKey

VALID = '"valid":true'
METHOD, PATH = "POST", "/v1/payments"
SCRIPT = Path(__file__).with_name("sending.lua")
TIMEOUT_SECONDS = 30
LENGTH_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Crowd:
    """A service provider, and agents with tokens for it: pairs of private key (PEM) and token."""

    client_id: str
    client_secret: str
    audience: str
    agents: list[tuple[str, str]]

    @property
    def basic(self) -> str:
        """The provider's Authorization header."""
        return (
            "Basic " + base64.b64encode(f"{self.client_id}:{self.client_secret}".encode()).decode()
        )


@dataclass(frozen=True, slots=True)
class Question:
    """The question asked with each proof: `action`, and each of `others` in turn.

    `operation`: with its own idempotency key. `named`: each call has its own `Idempotency-Key`
    header. `batch`: the number of questions in a call.
    """

    action: dict[str, Any]
    others: Sequence[dict[str, Any]] = ()
    operation: bool = False
    named: bool = False
    batch: int = 1

    @property
    def path(self) -> str:
        """The path of the endpoint."""
        return "/v1/verify" if self.batch == 1 else "/v1/verify/batch"


@dataclass(frozen=True, slots=True)
class Tally:
    """The result of one run.

    `answered`, `not_2xx` and `errors` (broken connections, missing answers) count calls; `wrong`
    counts verifications in 2xx answers with an unexpected verdict.
    """

    sent: int
    answered: int
    not_2xx: int
    wrong: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float

    def right(self, batch: int) -> int:
        """Verifications with the expected answer."""
        return (self.answered - self.not_2xx) * batch - self.wrong


def write_requests(
    directory: Path,
    crowd: Crowd,
    question: Question,
    *,
    url: str,
    calls: int,
    first: int = 0,
    repeat_every: int = 0,
) -> list[Path]:
    """Sign for `calls` calls and write them as whole HTTP requests, one file per core.

    The agents take turns, and so do the actions of each; `first` calls of the turns were made
    before.

    With `repeat_every`, each such call repeats the previous one: replays that the counts must show.
    Raises RuntimeError if signing took so long that the proofs would expire on the way.
    """
    began, cores = time.monotonic(), os.cpu_count() or 1
    bounds = [first + calls * part // cores for part in range(cores + 1)]
    files = [directory / f"requests-{part}" for part in range(cores)]
    with ProcessPoolExecutor(cores) as pool:
        for made in [
            pool.submit(_write, file, crowd, question, url, range(start, end), repeat_every)
            for file, start, end in zip(files, bounds, bounds[1:], strict=False)
        ]:
            made.result()
    if time.monotonic() - began > WINDOW_SECONDS / 2:
        raise RuntimeError(
            f"signing {calls * question.batch} proofs took longer than half their life"
        )
    return files


def requests_in(files: list[Path]) -> list[bytes]:
    """The requests of such files, in order."""
    found = []
    for file in files:
        data, at = file.read_bytes(), 0
        while at < len(data):
            size = int(data[at : at + LENGTH_DIGITS])
            found.append(data[at + LENGTH_DIGITS : at + LENGTH_DIGITS + size])
            at += LENGTH_DIGITS + size
    return found


def with_wrk(
    url: str,
    files: list[Path],
    *,
    batch: int,
    connections: int,
    seconds: int,
    expected: str = VALID,
) -> Tally:
    """Send the requests over `connections` kept-open connections until they or the seconds run out.

    A right answer contains the text `expected`, `batch` times.
    """
    command = [
        *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT_SECONDS}s"),
        *("-s", str(SCRIPT), url.replace("//localhost:", "//127.0.0.1:")),
        *("--", expected, str(batch), *map(str, files)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return parse_tally(done.stdout)


def parse_tally(printed: str) -> Tally:
    """The last line sending.lua printed. Raises ValueError if it did not finish."""
    lines = printed.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise ValueError(f"wrk printed no usable result: {printed!r}")
    return Tally(**json.loads(lines[-1]))


def _write(
    file: Path, crowd: Crowd, question: Question, url: str, calls: range, repeat_every: int
) -> None:
    """One core's share. `calls` are positions in the whole run, so agents take turns across all."""

    @cache
    def writer(agent: int) -> BodyWriter:
        # Made on first use: a run may ask about only some of many agents.
        pem, token = crowd.agents[agent]
        return BodyWriter(pem, token, crowd.audience, question)

    def asked(number: int) -> str:
        lap, agent = divmod(number, len(crowd.agents))
        # Shifted by lap, or an agent would have the same action each time.
        return writer(agent).body(iat, agent + lap)

    head = _head(crowd, question, url)
    iat, previous = int(time.time()), b""
    with file.open("wb") as out:
        for call in calls:
            if repeat_every and previous and call % repeat_every == 0:
                request = previous
            else:
                first = call * question.batch
                bodies = [asked(first + more) for more in range(question.batch)]
                body = bodies[0] if question.batch == 1 else f'{{"requests":[{",".join(bodies)}]}}'
                name = f"Idempotency-Key: {secrets.token_urlsafe(16)}\r\n" if question.named else ""
                request = f"{head}{name}Content-Length: {len(body)}\r\n\r\n{body}".encode()
            out.write(framed(request))
            previous = request


def framed(request: bytes) -> bytes:
    """The request preceded by its length, as in a file for `with_wrk`."""
    return b"%0*d" % (LENGTH_DIGITS, len(request)) + request


def _head(crowd: Crowd, question: Question, url: str) -> str:
    return (
        f"POST {question.path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: "
        f"{crowd.basic}\r\n"
        "Content-Type: application/json\r\n"
    )


class BodyWriter:
    """Bodies about one agent's token, each with a new proof. All constant parts are made once."""

    def __init__(self, pem: str, token: str, audience: str, question: Question) -> None:
        self.signer = LocalSigner(PrivateKey.from_pem(pem.encode()))
        url = audience + PATH
        sample = make_proof(self.signer, method=METHOD, url=url, iat=0, jti="0", access_token=token)
        self.header = sample.partition(".")[0]
        claims = {"htm": METHOD, "htu": url, "ath": b64u_encode(sha256(token.encode()))}
        self.claims = json.dumps(claims, separators=(",", ":"))[1:]
        asked = {"token": token, "method": METHOD, "url": url}
        self.asked = [
            json.dumps({**asked, "action": action}, separators=(",", ":"))[:-1]
            for action in (question.action, *question.others)
        ]
        self.operation = question.operation

    def body(self, iat: int, turn: int = 0) -> str:
        """A verify request as JSON. `turn` selects the action."""
        claims = f'{{"jti":"{secrets.token_urlsafe(16)}","iat":{iat},{self.claims}'
        signed = f"{self.header}.{b64u_encode(claims.encode())}"
        proof = f"{signed}.{b64u_encode(self.signer.sign(signed.encode()))}"
        key = f',"idempotency_key":"{secrets.token_urlsafe(16)}"' if self.operation else ""
        return f'{self.asked[turn % len(self.asked)]}{key},"proof":"{proof}"}}'
