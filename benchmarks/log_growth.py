"""Measures the cost of numbering events as the log grows, and of proofs: `python -m
benchmarks.log_growth`.

A private PostgreSQL with fsync. Events are written and numbered as the jobs do it, 2,000 in a
transaction, until the log has each of the sizes; there a checkpoint is signed, and proofs, tiles
and the checkpoint are requested through Django's whole stack, without network and rate limit.
Prints Markdown for benchmarks/README.md.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.cpu_time import cpu_seconds
from benchmarks.open_loop import percentile
from benchmarks.system_under_test import ENV, machine, postmaster
from tests import postgres
from tests.live import LiveRegistry

SIZES = (10_000, 100_000, 1_000_000)
BATCH = 2_000
# The rate is measured over this many events before each size.
MEASURED = 10_000
ASKED = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--events", type=int, action="append", help="sizes of the log, in ascending order"
    )
    parser.add_argument("--disk", type=Path, default=None, help="the folder to use on the disk")
    given = parser.parse_args()
    print(f"{machine()}. {' '.join(sys.argv[1:])}\n", flush=True)
    print(
        "| events in the log | events/s | jobs µs | PostgreSQL µs | inclusion p50, p99 ms | "
        "consistency | bundle | tile | checkpoint |"
        "\n|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    with (
        tempfile.TemporaryDirectory(prefix="agentauth-log-", dir=given.disk) as folder,
        postgres.cluster(durable=True) as url,
    ):
        registry = LiveRegistry(Path(folder), database_url=url, env=ENV)
        registry.prepare()
        os.environ.update(registry.env)
        os.environ["DJANGO_SETTINGS_MODULE"] = "agentauth.settings"
        import django

        django.setup()
        sizes, ids = given.events or list(SIZES), list[str]()
        for size in sizes:
            costs = grow(url, size, ids)
            print(f"| {size:,} | {costs} | {' | '.join(asked(size, ids))} |", flush=True)


def grow(url: str, size: int, ids: list[str]) -> str:
    """Grow the log to `size`; returns the cost of its last MEASURED events.

    Raises RuntimeError if an event has no number yet.
    """
    from audit.models import QueueEntry

    write_until(size - MEASURED, ids)
    root = {"postgres": postmaster(url)}
    wall, own, other = time.perf_counter(), time.process_time(), cpu_seconds(root)["postgres"]
    count = write_until(size, ids)
    wall, own = time.perf_counter() - wall, time.process_time() - own
    other = cpu_seconds(root)["postgres"] - other
    if QueueEntry.objects.exists():
        raise RuntimeError("not every event was numbered")
    return f"{count / wall:,.0f} | {own / count * 1e6:.1f} | {other / count * 1e6:.1f}"


def write_until(size: int, ids: list[str]) -> int:
    from django.db import transaction
    from django.utils import timezone

    from audit import kinds
    from audit.log.sequencer import sequence_until_empty
    from audit.new_ids import new_id_text
    from audit.services import NewEvent, check_data, record_many

    data = check_data(
        {"action": {"resource": "calendar", "type": "read"}, "capability": "read:calendar"}
    )
    written = 0
    who = "0192f1c8-0000-7000-8000-000000000001"
    while len(ids) < size:
        now = timezone.now()
        made = [
            NewEvent(
                id=new_id_text(),
                kind=kinds.DECISION_ALLOWED,
                at=now,
                actor_kind="service_provider",
                actor_id=who,
                request_id=f"request-{len(ids) + number}",
                outcome="success",
                data=data,
                agent_id=who,
                human_id=who,
                service_provider_id=who,
                grant_id=who,
                token_jti=ids[0] if ids else None,
            )
            for number in range(min(BATCH, size - len(ids)))
        ]
        with transaction.atomic():
            record_many(made, now=now)
        # The first batch creates the head that it otherwise waits for.
        sequence_until_empty(now=now)
        ids += [each.id for each in made]
        written += len(made)
    return written


def asked(size: int, ids: list[str]) -> list[str]:
    """p50 and p99 of each request."""
    from django.conf import settings
    from django.test import Client
    from django.utils import timezone

    from audit.archive.tiles import WIDTH, tile_key
    from audit.checkpoints import signing

    signing.EVERY, settings.RATE_LIMITED = timedelta(0), False
    signing.checkpoint_log(now=timezone.now())
    client, dice = Client(), random.Random(size)
    questions: list[Callable[[], str]] = [
        lambda: f"proof/inclusion?event={dice.choice(ids)}",
        lambda: f"proof/consistency?first={dice.randrange(1, size)}&second={size}",
        lambda: f"proof/bundle?event={dice.choice(ids)}",
        lambda: tile_key("0", dice.randrange(size // WIDTH)),
        lambda: "checkpoint",
    ]
    return [latencies(client, question) for question in questions]


def latencies(client: Any, question: Callable[[], str]) -> str:
    took = []
    for _ in range(ASKED):
        path = f"/v1/audit/{question()}"
        began = time.perf_counter()
        answer = client.get(path, headers={"Host": "localhost"})
        took.append(time.perf_counter() - began)
        if answer.status_code != 200:  # noqa: PLR2004 - as HTTP counts
            raise RuntimeError(f"{path}: {answer.status_code} {answer.content[:200]!r}")
    took.sort()
    return f"{percentile(took, 50):.1f}, {percentile(took, 99):.1f}"


if __name__ == "__main__":
    main()
