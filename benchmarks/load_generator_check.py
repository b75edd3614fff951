"""Tests the driver: both clients against a server that counts its own errors must agree with it."""

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from agentauth.protocol.dpop import verify_proof
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.keys import Algorithm, PrivateKey
from benchmarks.load_generation import Crowd, Question, Tally, requests_in, with_wrk, write_requests
from benchmarks.open_loop import open_loop

CALLS, REPEAT_EVERY, UNAVAILABLE_EVERY, BROKEN_EVERY = 1000, 100, 90, 170
# wrk ends early only if every call was answered.
CHECK_SECONDS = 5
QUESTION = Question({"type": "read", "resource": "calendar"})
Client = Callable[[str, list[Path]], Tally]


class FaultyServer(ThreadingHTTPServer):
    """Answers like the verifier; some calls with 503, some not at all. `did` counts each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.did: Counter[str] = Counter()
        self.seen: set[str] = set()
        self.lock = threading.Lock()

    def judge(self, body: dict[str, str]) -> bool:
        """Whether the proof is valid and unspent."""
        try:
            proof = verify_proof(
                body["proof"],
                expected_method=body["method"],
                expected_url=body["url"],
                access_token=body["token"],
                body=None,
                now=int(time.time()),
            )
        except AgentAuthError:
            return False
        new = proof.jti not in self.seen
        self.seen.add(proof.jti)
        return new


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            did = self.server.did
            did["calls"] += 1
            right = self.server.judge(body)
            if did["calls"] % BROKEN_EVERY == 0:
                did["broken"] += 1
                self.close_connection = True
                return
            unavailable = did["calls"] % UNAVAILABLE_EVERY == 0
            did["unavailable" if unavailable else "right" if right else "refused"] += 1
        answer = json.dumps({"valid": right}, separators=(",", ":")).encode()
        self.send_response(503 if unavailable else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — the library's name
        """No log line per call."""


def by_wrk(url: str, files: list[Path]) -> Tally:
    """Send all of them, as fast as they are answered."""
    return with_wrk(url, files, batch=1, connections=8, seconds=CHECK_SECONDS)


def by_open_loop(url: str, files: list[Path]) -> Tally:
    """Send all of them within two seconds."""
    return open_loop(url, requests_in(files), rate=CALLS / 2, batch=1, connections=8)[0]


def difference(client: Client, alg: Algorithm) -> str:
    """Where the client's counts differ from the server's; empty if nowhere."""
    pem = PrivateKey.generate(alg).to_pem().decode()
    # One key, but five tokens: a proof is valid for its own token only.
    agents = [(pem, f"token-{number}") for number in range(5)]
    crowd = Crowd("provider", "secret", "http://127.0.0.1:8001/acme", agents)
    with tempfile.TemporaryDirectory() as directory, FaultyServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        files = write_requests(
            Path(directory), crowd, QUESTION, url=server.url, calls=CALLS, repeat_every=REPEAT_EVERY
        )
        tally = client(server.url, files)
        server.shutdown()
    did = server.did
    counted = {
        "calls": tally.sent,
        "broken": tally.errors,
        "unavailable": tally.not_2xx,
        "refused": tally.wrong,
        "right": tally.right(1),
    }
    wanted = {name: did[name] for name in counted} | {"calls": CALLS}
    faults = all(did[name] for name in wanted)
    return (
        "" if counted == wanted and faults else f"counted {counted}, but the server did {dict(did)}"
    )


def main() -> None:
    for client in (by_wrk, by_open_loop):
        if wrong := difference(client, "EdDSA"):
            raise SystemExit(f"{client.__name__}: {wrong}")


if __name__ == "__main__":
    main()
