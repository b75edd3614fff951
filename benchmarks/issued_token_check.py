"""Judges tokens as they are issued, in its own process: through /v1/verify and by the key set."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from multiprocessing import Process, Queue
from typing import Any
from urllib.parse import urlsplit

import httpx

from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.key_set import read_key_set
from agentauth.protocol.token import TokenKey, verify_token
from benchmarks.load_generation import TIMEOUT_SECONDS, BodyWriter, Crowd, Question

THREADS = 4
READING = Question({"type": "read", "resource": "calendar"})
# An overloaded verifier answers 503, which may be retried with a new proof.
TRIES, PAUSE_SECONDS = 5, 0.1


@dataclass(slots=True)
class Judged:
    """How many tokens; failures per method; retried 503 answers; each token's wait (s)."""

    tokens: int = 0
    again: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    waited: list[float] = field(default_factory=list)


class KeySet:
    """The published keys, fetched again only once `max-age` is over, whatever the `kid`."""

    def __init__(self, registry_url: str) -> None:
        self.issuer, self.lock = registry_url, threading.Lock()
        self.until = 0.0
        self.found: Mapping[str, TokenKey] = {}

    def keys(self) -> Mapping[str, TokenKey]:
        """`kid` → key. Raises httpx.HTTPError if the registry does not answer."""
        with self.lock:
            now = time.monotonic()
            if now >= self.until:
                answer = httpx.get(f"{self.issuer}/.well-known/jwks.json", timeout=TIMEOUT_SECONDS)
                answer.raise_for_status()
                age = re.search(r"max-age=(\d+)", answer.headers["Cache-Control"])
                assert age
                self.found = read_key_set(answer.json(), expected_issuer=self.issuer)
                self.until = now + int(age[1])
            return self.found


class Checker:
    """`put` tokens, and at the end read `judged`. `pems`: grant → its agent's key."""

    def __init__(
        self, registry_url: str, verifier_url: str, crowd: Crowd, pems: Mapping[str, str]
    ) -> None:
        self.registry_url, self.verifier_url = registry_url, verifier_url
        self.crowd, self.pems = crowd, pems
        self.tokens: Queue[Any] = Queue()
        self.results: Queue[Judged] = Queue()
        self.process = Process(target=self._run, daemon=True)
        self.process.start()

    def put(self, grant_id: str, token: str) -> None:
        self.tokens.put((grant_id, token, time.time()))

    def judged(self) -> Judged:
        """The results, once every token was judged. Call it once."""
        for _ in range(THREADS):
            self.tokens.put(None)
        parts = [self.results.get(timeout=4 * TIMEOUT_SECONDS) for _ in range(THREADS)]
        self.process.join()
        whole = Judged()
        for part in parts:
            whole.tokens += part.tokens
            whole.failures += part.failures
            whole.again += part.again
            whole.waited += part.waited
        return whole

    def _run(self) -> None:
        key_set = KeySet(self.registry_url)
        threads = [threading.Thread(target=self._judge, args=(key_set,)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _judge(self, key_set: KeySet) -> None:
        judged, address = Judged(), urlsplit(self.verifier_url)
        connection = HTTPConnection("127.0.0.1", address.port, timeout=TIMEOUT_SECONDS)
        while (told := self.tokens.get()) is not None:
            grant_id, token, issued_at = told
            judged.tokens += 1
            judged.waited.append(time.time() - issued_at)
            for way, wrong in (
                ("key set", self._by_key_set(key_set, token)),
                ("verify", self._by_verify(connection, self.pems[grant_id], token, judged.again)),
            ):
                if wrong:
                    judged.failures[f"{way}: {wrong}"] += 1
        self.results.put(judged)

    def _by_key_set(self, key_set: KeySet, token: str) -> str:
        """What is wrong with the token; empty if nothing."""
        try:
            verify_token(
                token,
                keys=key_set.keys(),
                expected_issuer=self.registry_url,
                expected_audience=self.crowd.audience,
                now=int(time.time()),
            )
        except AgentAuthError as error:
            return str(getattr(error, "reason", "") or error)
        except httpx.HTTPError as error:
            return type(error).__name__
        return ""

    def _by_verify(
        self, connection: HTTPConnection, pem: str, token: str, again: Counter[str]
    ) -> str:
        """What is wrong with the token; counts retried answers in `again`."""
        writer = BodyWriter(pem, token, self.crowd.audience, READING)
        headers = {"Authorization": self.crowd.basic, "Content-Type": "application/json"}
        said: dict[str, Any] = {}
        for _ in range(TRIES):
            try:
                connection.request("POST", "/v1/verify", writer.body(int(time.time())), headers)
                answer = connection.getresponse()
                said = json.loads(answer.read())
            except (OSError, HTTPException) as error:
                connection.close()
                return type(error).__name__
            if answer.status == HTTPStatus.OK:
                return "" if said["valid"] else str(said.get("reason"))
            if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
                break
            again[str(said.get("error_description"))] += 1
            time.sleep(PAUSE_SECONDS)
        return str(said.get("error_description"))
