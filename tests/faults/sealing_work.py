"""Kills `seal_rows` before each statement, in a process: `python -m tests.faults.sealing_work`."""

import json
import os
import secrets
import signal
import sys
from itertools import count
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
django.setup()

from django.db import connection, connections  # noqa: E402 - after the set-up
from django.utils import timezone  # noqa: E402

from audit.models import Event  # noqa: E402
from audit.services import SYSTEM  # noqa: E402
from kms.models import Key, SealsPending  # noqa: E402
from kms.seal_backfill import seal_rows, unsealed_rows  # noqa: E402
from registry.models import Agent  # noqa: E402
from tests.faults.dying import Dying  # noqa: E402

# Two batches.
AGENTS = 501


def make_rows() -> None:
    """An installation as left by its migration from release 3."""
    now = timezone.now()
    Key.objects.update(seal=None)
    Agent.objects.bulk_create(
        Agent(
            status=Agent.Status.UNCLAIMED,
            jkt=secrets.token_urlsafe(32),
            public_jwk={},
            name="Agent",
            manifest="",
            manifest_sha256="",
            capabilities=[],
            expires_at=now,
            created_at=now,
        )
        for _ in range(AGENTS)
    )
    Agent.objects.update(status=Agent.Status.REVOKED)
    SealsPending.objects.create()


def seal(at: int) -> bool:
    """Run the command in a process that dies before its `at`-th statement; whether it died."""
    connections.close_all()
    child = os.fork()
    if child == 0:
        try:
            with connection.execute_wrapper(Dying(at)):
                seal_rows(actor=SYSTEM, now=timezone.now())
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if status and os.WTERMSIG(status) != signal.SIGKILL:
        sys.exit(f"seal_rows ended by itself: {status}")
    return bool(status)


def look() -> dict[str, Any]:
    """Sealed agents, the log's counts of sealed and adopted, whether unsealed rows are trusted."""
    told = Event.objects.filter(kind="kms.rows.sealed", data__table=Agent.table())
    data = list(told.values_list("data", flat=True))
    return {
        "sealed": sum(row.seal is not None for row in Agent.objects.only("seal")),
        "told": sum(each["sealed"] for each in data),
        "adopted": sum(len(each["adopted"]) for each in data),
        "pending": SealsPending.objects.exists(),
    }


def main() -> None:
    make_rows()
    seen = []
    for at in count(1):
        died = seal(at)
        seen.append(look())
        if not died:
            break
    print(json.dumps({"seen": seen, "unsealed": len(list(unsealed_rows()))}))


if __name__ == "__main__":
    main()
