"""A fake key service with the Transit calls the registry uses, a delay, and a signature limit.

`python -m benchmarks.fake_key_service --port 8200 --limit 100 --latency-ms 20`. Each Transit call
is answered after the latency; signatures beyond the limit per second get 429, like a rate quota of
OpenBao. `GET /counts` answers at once with the numbers of key reads, signatures and refused
signatures by purpose. It signs with keys in memory to use little CPU: the real service runs on
another machine.
"""

import argparse
import asyncio
import base64
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from agentauth.protocol.encoding import b64_encode, b64u_decode
from agentauth.protocol.keys import PrivateKey

_TRANSIT_PATH = re.compile(r"/v1/transit/(keys|sign)/(agentauth-([a-z]+)-[0-9a-f-]+)")
_REASONS = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    404: "Not Found",
    429: "Too Many Requests",
}
Answer = tuple[int, dict[str, Any] | None]


class KeyService:
    """Ed25519 keys by name, which sign at most `limit` times in each second of the clock.

    A `limit` of 0 is no limit. Counts have names such as `token signed`.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.clock = limit, clock
        self.keys: dict[str, PrivateKey] = {}
        self.counts: Counter[str] = Counter()
        self.current_second, self.remaining = -1, 0

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Status and JSON of one call."""
        if path == "/counts":
            return 200, dict(self.counts)
        found = _TRANSIT_PATH.fullmatch(path)
        if found is None:
            return 404, {"errors": []}
        operation, name, purpose = found.groups()
        try:
            if operation == "keys" and method in {"POST", "PUT"}:
                return self._make(name, json.loads(body)["type"])
            if name not in self.keys:
                return 404, {"errors": []}
            if operation == "keys":
                self.counts[f"{purpose} read"] += 1
                return 200, {"data": self._describe_key(name)}
            return self._sign(name, purpose, base64.b64decode(json.loads(body)["input"]))
        except (KeyError, TypeError, ValueError):
            return 400, {"errors": ["the body is not the JSON of this call"]}

    def _make(self, name: str, kind: object) -> Answer:
        if kind != "ed25519":
            return 400, {"errors": ["this fake holds only Ed25519 keys"]}
        self.keys.setdefault(name, PrivateKey.generate())
        return 204, None

    def _sign(self, name: str, purpose: str, message: bytes) -> Answer:
        if not self._take_one():
            self.counts[f"{purpose} refused"] += 1
            return 429, {"errors": ["request path: rate limit quota exceeded"]}
        self.counts[f"{purpose} signed"] += 1
        signature = b64_encode(self.keys[name].sign(message))
        return 200, {"data": {"signature": f"vault:v1:{signature}"}}

    def _describe_key(self, name: str) -> dict[str, Any]:
        keys = {"1": {"public_key": b64_encode(b64u_decode(self.keys[name].public.jwk["x"]))}}
        return {
            "type": "ed25519",
            "exportable": False,
            "allow_plaintext_backup": False,
            "keys": keys,
        }

    def _take_one(self) -> bool:
        """Count one signature against the limit; False if it is used up for this second."""
        second = int(self.clock())
        if second != self.current_second:
            self.current_second, self.remaining = second, self.limit
        self.remaining -= 1
        return self.limit == 0 or self.remaining >= 0


async def _serve(
    service: KeyService, latency: float, reader: asyncio.StreamReader, writer: Any
) -> None:
    """Answer the calls of one connection in turn, Transit calls `latency` seconds late."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, path, _ = head.split(" ", 2)
            length = re.search(r"^content-length: *(\d+)", head, re.MULTILINE | re.IGNORECASE)
            body = await reader.readexactly(int(length[1])) if length else b""
            status, answer = service.answer(method, path, body)
            if path != "/counts":
                await asyncio.sleep(latency)
            text = json.dumps(answer).encode() if answer is not None else b""
            writer.write(
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(text)}\r\n\r\n".encode()
                + text
            )
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--limit", type=int, default=100, help="signatures a second, of all keys together"
    )
    parser.add_argument("--latency-ms", type=float, default=20)
    given = parser.parse_args()
    service = KeyService(given.limit)
    server = await asyncio.start_server(
        lambda reader, writer: _serve(service, given.latency_ms / 1000, reader, writer),
        "127.0.0.1",
        given.port,
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
