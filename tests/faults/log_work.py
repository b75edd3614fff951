"""Processes for the log's fault tests: `python -m tests.faults.log_work record|number|finish …`."""

import json
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
django.setup()

from django.db import OperationalError, transaction  # noqa: E402 - after the set-up
from django.utils import timezone  # noqa: E402

from agentauth.protocol.errors import TemporarilyUnavailableError  # noqa: E402
from agentauth.protocol.identifiers import uuid7_text  # noqa: E402
from audit import kinds  # noqa: E402
from audit.checkpoints import signing  # noqa: E402
from audit.models import Event, Leaf  # noqa: E402
from audit.services import SYSTEM, record, record_many, seal_audit  # noqa: E402
from audit.tests.test_record_many import entry  # noqa: E402
from registry.services.log_keys import audit_vkeys  # noqa: E402


def write_events(told: str, pause: str) -> None:
    """Insert events, at times many at once, `pause` s apart; append committed ids to `told`."""
    with Path(told).open("a") as file:
        while True:
            with transaction.atomic():
                ids = [str(record(kind=kinds.REQUEST_REFUSED, actor=SYSTEM, at=timezone.now()).id)]
            if ids[0].endswith("0"):
                many = [entry() for _ in range(300)]
                with transaction.atomic():
                    record_many(many, now=timezone.now())
                ids += [each.id for each in many]
            file.write("".join(f"{one}\n" for one in ids))
            file.flush()
            time.sleep(float(pause))


def number(kills: str, seed: str) -> None:
    """Number and sign without pause, one process after another, each killed at a random moment."""
    dice = random.Random(int(seed))
    for _ in range(int(kills)):
        child = os.fork()
        if child == 0:
            _number_for_ever()
        time.sleep(dice.uniform(0.02, 0.3))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"a sequencer ended by itself: {status}")
    print(json.dumps({"kills": int(kills)}))


def _number_for_ever() -> None:
    try:
        while True:
            try:
                seal_audit(now=timezone.now())
                signing.checkpoint_log(now=timezone.now())
            except (OperationalError, TemporarilyUnavailableError):
                # The other process held the lock for too long; try again.
                continue
    finally:
        os._exit(1)


def finish() -> None:
    """Number and sign the rest."""
    seal_audit(now=timezone.now())
    signing.checkpoint_log(now=timezone.now())
    newest = signing.newest_checkpoint()
    print(
        json.dumps(
            {
                "size": newest.size if newest else 0,
                "root": bytes(newest.root).hex() if newest else "",
            }
        )
    )


def leaves(told: str) -> None:
    """Which events in the file `told` have no number, and which numbers exist."""
    rows = dict(Leaf.objects.values_list("event_id", "leaf_index"))
    ids = Path(told).read_text().split()
    missing = [one for one in ids if uuid.UUID(one) not in rows]
    print(json.dumps({"told": len(ids), "missing": missing, "numbers": sorted(rows.values())}))


def month(later: str, count: str) -> None:
    """Insert `count` events in the middle of the month `later` months from now (0: this one)."""
    first = timezone.now().replace(day=1, hour=0, minute=0, second=0)
    index = first.year * 12 + first.month - 1 + int(later)
    moment = first.replace(year=index // 12, month=index % 12 + 1, day=1)
    began = int(moment.timestamp() * 1000)
    made = [
        entry(id=uuid7_text(began + place, os.urandom(10)), at=moment)
        for place in range(int(count))
    ]
    with transaction.atomic():
        record_many(made, now=timezone.now())
    print(json.dumps({"made": len(made)}))


def events() -> None:
    print(json.dumps({"events": Event.objects.count()}))


def vkeys() -> None:
    print(json.dumps({"vkeys": "".join(f"{key}\n" for key in audit_vkeys())}))


ACTS: dict[str, Callable[..., None]] = {
    "record": write_events,
    "number": number,
    "finish": finish,
    "leaves": leaves,
    "month": month,
    "events": events,
    "vkeys": vkeys,
}
if __name__ == "__main__":
    # A checkpoint whenever there are new leaves.
    signing.EVERY = timedelta(0)
    ACTS[sys.argv[1]](*sys.argv[2:])
