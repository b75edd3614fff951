"""What this process was told of decisions that wait in Redis: without it nobody knows how many went with a Redis that is gone.

Kept in memory, and written down once the epoch is over (or this process ends): nothing of it costs a call anything.
"""

import threading
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from verifier.models import StreamCursor
from verifier.stores.light import Called, epoch_of
from verifier.stores.scripts import GIVE_BACK, Reply, Script, read_reply


class Told:
    """The number of the last event, by epoch and shard, that some answer of this process rests on. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[tuple[int, int], int] = {}

    def hear(self, epoch: int, shard: int, number: int) -> None:
        """Event `number` of the shard's stream was written; 0: none was."""
        with self._lock:
            if number > self._last.get((epoch, shard), 0):
                self._last[epoch, shard] = number

    def write_down(self, *, before: int | None = None) -> None:
        """Put what was told of epochs below `before` (None: of all) where the drainer finds it.

        Raises django.db errors; then it is still known, for the next time.
        """
        with self._lock:
            due = {place: n for place, n in self._last.items() if before is None or place[0] < before}
        if not due:
            return
        with transaction.atomic():
            # In one order: of two that do this at once, and of the drainer, none waits for the other in a circle.
            rows = [StreamCursor(epoch=epoch, shard=shard) for epoch, shard in sorted(due)]
            StreamCursor.objects.bulk_create(rows, ignore_conflicts=True)
            for (epoch, shard), number in sorted(due.items()):
                StreamCursor.objects.filter(epoch=epoch, shard=shard, told__lt=number).update(told=number)
            # Not before the commit, which may be of more than this, and fail.
            transaction.on_commit(lambda: self._forget(due))

    def _forget(self, due: Mapping[tuple[int, int], int]) -> None:
        with self._lock:
            for place, number in due.items():
                if self._last.get(place) == number:
                    del self._last[place]


# This process's own.
TOLD = Told()


def read_told(script: Script, called: Called, raw: Any) -> Reply:
    """A script's raw answer, read; its event, where it wrote one, is one that this process was told of.

    Raises ValueError or TypeError for what is no answer of ours.
    """
    reply = read_reply(raw)
    if script is not GIVE_BACK:
        TOLD.hear(epoch_of(called), called[0], reply.number)
    return reply
