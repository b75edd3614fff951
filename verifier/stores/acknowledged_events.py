"""The last decision events in Redis that this process answered for.

If Redis is lost, only this tells how many events were lost with it. The numbers stay in memory and
are written to the database when the epoch is over or the process ends, so they cost a call nothing.
"""

import threading
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from verifier.models import StreamCursor
from verifier.stores.lua_scripts import GIVE_BACK, Reply, Script, read_reply
from verifier.stores.redis_decisions import ScriptCall, epoch_of


class AcknowledgedEvents:
    """The number of the last event per epoch and shard that an answer of this process rests on.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[tuple[int, int], int] = {}

    def note(self, epoch: int, shard: int, number: int) -> None:
        """Note that event `number` of the shard's stream was written; 0 means none was."""
        with self._lock:
            if number > self._last.get((epoch, shard), 0):
                self._last[epoch, shard] = number

    def save(self, *, before: int | None = None) -> None:
        """Store the numbers of epochs below `before` (None: all) in StreamCursor, for the drainer.

        Raises django.db errors; the numbers are then kept for the next attempt.
        """
        with self._lock:
            due = {
                place: n for place, n in self._last.items() if before is None or place[0] < before
            }
        if not due:
            return
        with transaction.atomic():
            # Sorted, so that two processes, or a process and the drainer, cannot deadlock.
            rows = [StreamCursor(epoch=epoch, shard=shard) for epoch, shard in sorted(due)]
            StreamCursor.objects.bulk_create(rows, ignore_conflicts=True)
            for (epoch, shard), number in sorted(due.items()):
                StreamCursor.objects.filter(epoch=epoch, shard=shard, told__lt=number).update(
                    told=number
                )
            # Only after the commit: an outer transaction may still fail.
            transaction.on_commit(lambda: self._forget(due))

    def _forget(self, due: Mapping[tuple[int, int], int]) -> None:
        with self._lock:
            for place, number in due.items():
                if self._last.get(place) == number:
                    del self._last[place]


# The instance of this process.
ACKNOWLEDGED = AcknowledgedEvents()


def read_acknowledged(script: Script, called: ScriptCall, raw: Any) -> Reply:
    """Read a script's raw answer, and note its event, if it wrote one, as acknowledged.

    Raises ValueError or TypeError if it is not an answer of our scripts.
    """
    reply = read_reply(raw)
    if script is not GIVE_BACK:
        ACKNOWLEDGED.note(epoch_of(called), called[0], reply.number)
    return reply
