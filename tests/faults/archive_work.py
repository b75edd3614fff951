"""Processes of the archive's fault tests: `python -m tests.faults.archive_work sign|archive|…`."""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
django.setup()

from django.conf import settings  # noqa: E402 - after the set-up
from django.db import OperationalError  # noqa: E402
from django.utils import timezone  # noqa: E402

from agentauth.protocol.errors import TemporarilyUnavailableError  # noqa: E402
from audit.archive.segment_writing import archive_audit  # noqa: E402
from audit.checkpoints import signing  # noqa: E402
from audit.models import Segment  # noqa: E402
from audit.services import seal_audit  # noqa: E402
from audit.stores.store_factory import store_at  # noqa: E402

POINTS: Final = tuple(
    f"archive.after_{place}" for place in ("stage", "object", "objects", "proof", "manifest", "row")
)
# Events keep coming, so each fault point is reached, though a slow machine needs time.
REACHED_SECONDS: Final = 300


def sign() -> None:
    """Number and sign without pause, to give the archiver work."""
    while True:
        try:
            seal_audit(now=timezone.now())
            signing.checkpoint_log(now=timezone.now())
        except (OperationalError, TemporarilyUnavailableError):
            continue
        time.sleep(0.05)


def archive(kills: str, seed: str) -> None:
    """Archive without pause, one process after another, each killed at a point or at random."""
    dice, points = random.Random(int(seed)), Counter[str]()
    for turn in range(int(kills)):
        # In rotation, so that few kills cover every point.
        point = POINTS[turn // 2 % len(POINTS)] if turn % 2 else ""
        child = os.fork()
        if child == 0:
            _archive_for_ever(point)
        if point:
            signal.alarm(REACHED_SECONDS)
        else:
            time.sleep(dice.uniform(0.05, 1))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        signal.alarm(0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"an archiver ended by itself: {status}")
        points[point] += 1
    print(json.dumps({"kills": sum(points.values()), "points": points}))


def _archive_for_ever(point: str) -> None:
    settings.FAULT_AT = point
    store = store_at(settings.AUDIT_STORE)
    try:
        while True:
            try:
                if archive_audit(now=timezone.now(), store=store) is None:
                    time.sleep(0.02)
            except (OperationalError, TemporarilyUnavailableError):
                # The other archiver is writing there; try again.
                continue
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(1)


def segments() -> None:
    """The segments the database has recorded."""
    rows = Segment.objects.order_by("first").values_list("first", "end", "manifest_sha256")
    print(json.dumps([[first, end, bytes(sha256).hex()] for first, end, sha256 in rows]))


ACTS: dict[str, Callable[..., None]] = {"sign": sign, "archive": archive, "segments": segments}
if __name__ == "__main__":
    # A checkpoint whenever there are new leaves.
    signing.EVERY = timedelta(0)
    ACTS[sys.argv[1]](*sys.argv[2:])
