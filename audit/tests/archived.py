"""A log that tests sign and archive, and stores that fail or are tampered with."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.db import transaction

from agentauth.protocol.checkpoint import Checkpoint as Said
from agentauth.protocol.checkpoint import sign_checkpoint
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.keys import LocalSigner
from audit import kinds
from audit.archive.archive_verification import prove_archive
from audit.archive.segment_writing import Range, archive_audit
from audit.log.sequencer import sequence_until_empty
from audit.log.tree_reader import root_at
from audit.models import Checkpoint, Event, Head
from audit.new_ids import new_id_text
from audit.services import NewEvent, check_data, record_many
from audit.stores import Sink, Store
from audit.stores.folder import FolderStore
from audit.tests.signing import signer
from audit.verify.verification import Verdict

ORIGIN = "localhost:8000/v1/audit"
SIGNER = signer(purpose="audit", now=datetime.now(UTC))


@dataclass
class Log:
    """A log, and what a test does with it."""

    make_event: Callable[..., Event]
    now: datetime
    store: FolderStore
    folder: Path

    def grow(self, count: int, **overrides: Any) -> list[Event]:
        """Record and number `count` events; returns the first ten, which are made one by one."""
        few = min(count, 10)
        events = [
            self.make_event(
                **({"data": {"n": number}, "personal": {"name": "Alice Abel"}} | overrides)
            )
            for number in range(few)
        ]
        with transaction.atomic():
            record_many([self._entry(number) for number in range(few, count)], now=self.now)
        sequence_until_empty(now=self.now)
        return events

    def _entry(self, number: int) -> NewEvent:
        return NewEvent(
            id=new_id_text(),
            kind=kinds.REQUEST_REFUSED,
            at=self.now,
            actor_kind="agent",
            actor_id="one",
            request_id="",
            outcome="denied",
            data=check_data({"n": number}),
        )

    def sign(self) -> Checkpoint:
        size = Head.objects.get().size
        root = root_at(size)
        return Checkpoint.objects.create(size=size, root=root, note=signed(size, root), at=self.now)

    def grown(self, *counts: int) -> None:
        """Grow by each count, and sign each time."""
        for count in counts:
            self.grow(count)
            self.sign()

    def archive(self) -> list[Range]:
        ranges = []
        while found := archive_audit(now=self.now, store=self.store):
            ranges.append(found)
        return ranges

    def prove(self, **more: Any) -> Verdict:
        return prove_archive(store=self.store, now=self.now, **more)


def signed(size: int, root: bytes, *, origin: str = ORIGIN, signer: LocalSigner = SIGNER) -> str:
    return sign_checkpoint(Said(origin, size, root), signer=signer)


class FailingStore:
    """A store whose call number `at` fails, before or after it took effect."""

    def __init__(self, store: Store, at: int, *, done: bool) -> None:
        self._store, self._at, self._done, self.calls = store, at, done, 0

    def _call(self, call: Callable[[], Any]) -> Any:
        self.calls += 1
        failing = self.calls == self._at
        if failing and not self._done:
            raise TemporarilyUnavailableError
        answer = call()
        if failing:
            raise TemporarilyUnavailableError
        return answer

    def put_once(self, key: str, data: bytes | Path) -> None:
        self._call(lambda: self._store.put_once(key, data))

    def get(self, key: str) -> bytes | None:
        found: bytes | None = self._call(lambda: self._store.get(key))
        return found

    def fetch(self, key: str, into: Sink) -> bool:
        return bool(self._call(lambda: self._store.fetch(key, into)))

    def keys(self, prefix: str = "", after: str = "") -> Iterator[str]:
        return self._store.keys(prefix, after)


@contextlib.contextmanager
def broken_into(path: Path, data: bytes | None) -> Iterator[None]:
    """Replace or delete an object, as the folder's owner can; restore it afterwards."""
    before = path.read_bytes()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(before)
