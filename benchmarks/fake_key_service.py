"""A fake key service with the Transit calls the registry uses, a delay, and a signature limit.

`python -m benchmarks.fake_key_service --port 8200 --limit 100 --latency-ms 20`. Each answer takes
the latency; signatures beyond the limit per second get 429, like a rate quota of OpenBao. `GET
/counts` returns the call counts. It signs with keys in memory to use little CPU: the real service
runs on another machine.
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

from agentauth.protocol.encoding import b64_encode
from agentauth.protocol.keys import PrivateKey

_ASKED = re.compile(r"/v1/transit/(keys|sign)/(agentauth-([a-z]+)-[0-9a-f-]+)")
_REASONS = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    404: "Not Found",
    429: "Too Many Requests",
}
Answer = tuple[int, dict[str, Any] | None]


class KeyService:
    """Ed25519 keys by name, a limit of signatures a second (0: none), and call counts.

    Counts have names such as `<purpose> signed`.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.clock = limit, clock
        self.keys: dict[str, PrivateKey] = {}
        self.counts: Counter[str] = Counter()
        self.second, self.left = 0, 0

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Status and JSON of one call."""
        if path == "/counts":
            return 200, dict(self.counts)
        found = _ASKED.fullmatch(path)
        if found is None:
            return 404, {"errors": []}
        what, name, purpose = found.groups()
        if what == "keys" and method in {"POST", "PUT"}:
            return self._make(name, json.loads(body))
        if name not in self.keys:
            return 404, {"errors": []}
        if what == "keys":
            self.counts[f"{purpose} read"] += 1
            return 200, {"data": self._described(name)}
        if not self._within():
            self.counts[f"{purpose} refused"] += 1
            return 429, {"errors": ["request path: rate limit quota exceeded"]}
        self.counts[f"{purpose} signed"] += 1
        signature = self.keys[name].sign(base64.b64decode(json.loads(body)["input"]))
        return 200, {"data": {"signature": f"vault:v1:{b64_encode(signature)}"}}

    def _make(self, name: str, asked: dict[str, Any]) -> Answer:
        if asked["type"] != "ed25519":
            return 400, {"errors": ["this fake holds only Ed25519 keys"]}
        self.keys.setdefault(name, PrivateKey.generate())
        return 204, None

    def _described(self, name: str) -> dict[str, Any]:
        public = base64.urlsafe_b64decode(self.keys[name].public.jwk["x"] + "=")
        keys = {"1": {"public_key": b64_encode(public)}}
        return {
            "type": "ed25519",
            "exportable": False,
            "allow_plaintext_backup": False,
            "keys": keys,
        }

    def _within(self) -> bool:
        second = int(self.clock())
        if second != self.second:
            self.second, self.left = second, self.limit
        self.left -= 1
        return self.limit == 0 or self.left >= 0


async def _serve(
    service: KeyService, seconds: float, reader: asyncio.StreamReader, writer: Any
) -> None:
    """Handle the calls of one connection in turn, each `seconds` late."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, path, _ = head.split(" ", 2)
            length = re.search(r"^content-length: *(\d+)", head, re.MULTILINE | re.IGNORECASE)
            body = await reader.readexactly(int(length[1])) if length else b""
            status, told = service.answer(method, path, body)
            if path != "/counts":
                await asyncio.sleep(seconds)
            text = json.dumps(told).encode() if told is not None else b""
            writer.write(
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(text)}\r\n\r\n".encode()
                + text
            )
    except (asyncio.IncompleteReadError, ConnectionError):
        # The other side closed the connection.
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
