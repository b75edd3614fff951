"""An open-loop load above a verifier's capacity, on kept connections: it waits for no answer."""

import asyncio
import itertools
import json
import re
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.actors import Scene, payment_of
from tests.faults.clients import READ, question_of, request_of
from tests.live import LiveServer

PAYMENT = payment_of("0.01")
# The error of a call that was shed before it was read: its proof is unspent, so the same call is
# sent again, with a new proof after a while. A call that ran out of time may have spent its proof.
UNSEEN = "Too many calls at once."
YOUNG_SECONDS = 20
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PATIENCE = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Told:
    """One answer. `due`: when the call should have been sent; `status` 0: the connection broke."""

    due: float
    sent: float
    ended: float
    status: int
    retry_after: bool
    body: Mapping[str, Any]

    @property
    def yes(self) -> bool:
        return self.status == 200 and self.body["valid"] is True

    @property
    def seconds(self) -> float:
        return self.ended - self.sent


@dataclass(slots=True)
class _Call:
    request: bytes
    made: float
    pays: bool


@dataclass
class Flood:
    """`run` sends `rate` calls a second for `seconds`; at rate 0 each waits for its answer."""

    server: LiveServer
    # Grants that read, which Redis decides, and grants that pay, which the database decides; with
    # their tokens. They take turns; without readers, all calls pay.
    readers: Sequence[tuple[Scene, str]]
    payers: Sequence[tuple[Scene, str]]
    told: list[Told] = field(default_factory=list)
    # Calls shed unread: reads and payments. Kept apart, so that half of all calls are payments
    # however many are shed.
    _again: tuple[deque[_Call], deque[_Call]] = field(default_factory=lambda: (deque(), deque()))
    _bodies: dict[bytes, Mapping[str, Any]] = field(default_factory=dict)
    _number: Iterator[int] = field(default_factory=itertools.count)

    def run(self, seconds: float, *, connections: int, rate: float = 0) -> list[Told]:
        """Run the load and return all answers."""
        before = len(self.told)
        asyncio.run(self._all(seconds, connections, rate))
        return self.told[before:]

    async def _all(self, seconds: float, connections: int, rate: float) -> None:
        began = time.monotonic()
        tickets = itertools.count()
        await asyncio.gather(
            *(self._one(tickets, began, began + seconds, rate) for _ in range(connections))
        )

    async def _one(self, tickets: Iterator[int], began: float, end: float, rate: float) -> None:
        line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while True:
            due = began + next(tickets) / rate if rate else time.monotonic()
            if due >= end:
                break
            await asyncio.sleep(max(0, due - time.monotonic()))
            line = line or await asyncio.open_connection("127.0.0.1", self.server.port)
            try:
                await self._ask(*line, due)
            except (OSError, asyncio.IncompleteReadError):
                now = time.monotonic()
                self.told.append(Told(due, now, now, 0, False, {}))
                line[1].close()
                line = None
        if line:
            line[1].close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, due: float
    ) -> None:
        call, sent = self._next(), time.monotonic()
        writer.write(call.request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        assert length, head
        body = await reader.readexactly(int(length[1]))
        status = int(head[9:12])
        # Refusals are many and alike: keep one parsed object of each.
        meant = (
            self._bodies.setdefault(body, json.loads(body)) if status != 200 else json.loads(body)
        )
        self.told.append(
            Told(due, sent, time.monotonic(), status, bool(_PATIENCE.search(head)), meant)
        )
        if status == 503 and meant["error_description"].startswith(UNSEEN):
            self._again[call.pays].append(call)

    def _next(self) -> _Call:
        now, number = time.monotonic(), next(self._number)
        pays = number % 2 == 1 or not self.readers
        again = self._again[pays]
        while again:
            call = again.popleft()
            if call.made > now - YOUNG_SECONDS:
                return call
        who = self.payers if pays else self.readers
        place, token = who[number // 2 % len(who)]
        action, key = (PAYMENT, str(uuid.uuid4())) if pays else (READ, None)
        question = question_of(place, token, action, None, key)
        return _Call(request_of(self.server, place, question), now, pays)
