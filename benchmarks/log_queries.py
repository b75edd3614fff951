"""Measures whether log queries of pages and the events API depend on its length: `python -m
benchmarks.log_queries`.

Fills a private PostgreSQL with months of realistic events and leaves, and runs the pages' and the
API's own code at each size. Leaves and entries are random, since no proofs are made. Prints
Markdown.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.system_under_test import ENV, machine
from tests import postgres
from tests.live import LiveRegistry

SIZES = (100_000, 1_000_000)
MONTHS = 12
ROUNDS = 7
BYTES_PER_EVENT = 1_600
# One event in ten is of this agent; its owner has more of them.
BUSY, BUSY_HUMAN = uuid.UUID(int=1), uuid.UUID(int=1_000_001)
# An agent with one event in ten thousand, one with a hundred at the beginning only, one with the
# last hundred.
RARE, EARLY, LATE = uuid.UUID(int=2), uuid.UUID(int=3), uuid.UUID(int=4)
NOBODY = uuid.UUID(int=9)

_ROWS = """
CREATE TEMPORARY TABLE made ON COMMIT DROP AS
SELECT n, ms,
    (lpad(to_hex(ms), 12, '0') || '7' || substr(h, 1, 3) || '8' || substr(h, 4, 15))::uuid AS id,
    CASE WHEN n < 100 THEN %(early)s
         WHEN n >= %(last)s THEN %(late)s
         WHEN n %% 10 = 0 THEN %(busy)s
         WHEN n %% 10000 = 7 THEN %(rare)s
         WHEN n %% 10 = 1 THEN NULL
         ELSE md5((power(n %% 9973 / 9973.0, 4) * 10000)::int::text)::uuid END AS agent_id,
    CASE WHEN n %% 100000 = 77 THEN 'kms.key.disabled'
         WHEN n %% 1000 = 13 THEN 'registry.grant.approved'
         WHEN n %% 40 = 10 THEN 'verifier.decision.denied'
         WHEN n %% 25 = 4 THEN 'registry.token.issued'
         ELSE 'verifier.decision.allowed' END AS kind,
    h
FROM (SELECT n, md5(n::text) AS h, %(began)s + (n::numeric / %(size)s * %(span)s)::bigint AS ms
      FROM generate_series(%(first)s, %(end)s - 1) n) numbered
"""
_MONTHS = """
SELECT agentauth_add_event_month(date_trunc('month', moment AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')
FROM generate_series(now() - %s * interval '1 month', now(), interval '1 day') moment
"""
_EVENTS = """
INSERT INTO audit_event
SELECT id, kind, to_timestamp(ms / 1000.0),
    'service_provider', '0192f1c8-0000-7000-8000-000000000001',
    agent_id,
    CASE WHEN agent_id = %(busy)s THEN %(human)s
         WHEN agent_id IS NOT NULL THEN md5(left(agent_id::text, 3))::uuid END,
    '0192f1c8-0000-7000-8000-000000000001',
    CASE WHEN agent_id IS NOT NULL THEN md5(agent_id::text || n %% 3)::uuid END,
    substr(h, 1, 22),
    CASE WHEN kind = 'verifier.decision.denied' THEN 'denied' ELSE 'success' END,
    CASE WHEN kind = 'verifier.decision.denied' THEN 'no_capability' END,
    h,
    '{"action": {"type": "read", "resource": "calendar"}, "capability": "read:calendar"}',
    sha256(h::bytea)
FROM made ORDER BY id
"""
_LEAVES = """
INSERT INTO audit_leaf (leaf_index, event_id, entry, leaf_hash, link, agent_id, human_id, kind)
SELECT n, made.id, sha256(h::bytea), sha256(h::bytea), sha256(h::bytea), agent_id,
    CASE WHEN agent_id = %(busy)s THEN %(human)s
         WHEN agent_id IS NOT NULL THEN md5(left(agent_id::text, 3))::uuid END,
    kind
FROM made ORDER BY n
"""
_EMPTIED = (
    "DELETE FROM audit_leaf",
    "DELETE FROM audit_queueentry",
    "DELETE FROM audit_opening",
    "DELETE FROM audit_event",
)
_CHUNK = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--events", type=int, action="append", help="sizes of the log, in ascending order"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--disk", type=Path, default=None, help="the folder to use on the disk")
    parser.add_argument(
        "--plans", action="store_true", help="print PostgreSQL's plan of each query"
    )
    given = parser.parse_args()
    sizes = given.events or list(SIZES)
    room = shutil.disk_usage(given.disk or tempfile.gettempdir()).free
    if room < 2 * max(sizes) * BYTES_PER_EVENT:
        sys.exit(
            f"{max(sizes):,} events need {2 * max(sizes) * BYTES_PER_EVENT:,} bytes free; there "
            f"are {room:,}"
        )
    print(f"{machine()}. {' '.join(sys.argv[1:])}\n", flush=True)
    settings = "-c shared_buffers=1GB -c max_wal_size=4GB -c synchronous_commit=off"
    with (
        postgres.server(disk=given.disk, settings=settings) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        connect(server.url, Path(folder))
        took: dict[str, list[float]] = {name: [] for name in questions()}
        for size in sizes:
            began = time.monotonic()
            fill(server.url, size, first_of(sizes, size), max(sizes))
            print(
                f"{size:,} events after {time.monotonic() - began:.0f} s more",
                file=sys.stderr,
                flush=True,
            )
            for name, ask in questions().items():
                took[name].append(measure(ask, given.rounds))
                if given.plans:
                    explain(name, ask)
    print("| what is asked | " + " | ".join(f"ms at {size:,}" for size in sizes) + " | times |")
    print("|---|" + "---|" * (len(sizes) + 1))
    for name, figures in took.items():
        cells = " | ".join(f"{figure * 1000:.1f}" for figure in figures)
        print(f"| {name} | {cells} | {figures[-1] / figures[0]:.1f} |", flush=True)


def connect(url: str, folder: Path) -> None:
    """Migrate, and make this process part of the installation."""
    registry = LiveRegistry(folder, database_url=url, env=ENV)
    registry.prepare()
    registry.manage("seal_audit")
    os.environ.update(registry.env)
    os.environ["DJANGO_SETTINGS_MODULE"] = "agentauth.settings"
    import django

    django.setup()
    with psycopg.connect(url, autocommit=True) as asking:
        asking.execute(_MONTHS, [MONTHS])
        # What preparing wrote would conflict with the numbers.
        asking.execute("SET session_replication_role = replica")
        for statement in _EMPTIED:
            asking.execute(statement)


def first_of(sizes: list[int], size: int) -> int:
    """How many events existed before."""
    return max((each for each in sizes if each < size), default=0)


def fill(url: str, size: int, there: int, most: int) -> None:
    """Grow the log to `size` events; it always ends now, at the rate `most` sets."""
    now = int(time.time() * 1000)
    span = MONTHS * 30 * 86_400_000
    with psycopg.connect(url) as writing:
        for first in range(there, size, _CHUNK):
            end = min(first + _CHUNK, size)
            values = {
                "first": first, "end": end, "last": size - 100, "size": most, "span": span,
                "began": now - span,
                "busy": BUSY, "human": BUSY_HUMAN, "rare": RARE, "early": EARLY, "late": LATE,
            }  # fmt: skip
            for statement in (_ROWS, _EVENTS, _LEAVES):
                writing.execute(statement, values)
            writing.commit()
        writing.execute("UPDATE audit_head SET size = %s", [size])
        writing.commit()
        writing.autocommit = True
        writing.execute("VACUUM ANALYZE")


def questions() -> dict[str, Callable[[], Any]]:
    """Name → query; each call queries again."""
    from django.contrib.admin import AdminSite
    from django.test import RequestFactory

    from approvals.views.activity_search import read_search
    from approvals.views.paging import page_of
    from approvals.views.spending import count_days
    from audit.admin import EventAdmin
    from audit.log.listing import Cursor, page_of_log
    from audit.models import Event, Head, Leaf
    from audit.new_ids import new_id_text
    from audit.services import find_recorded
    from registry.models import Human
    from registry.roles import Role

    requests = RequestFactory()
    admin = EventAdmin(Event, AdminSite())

    def api(after: float = 0.0, **wanted: Any) -> Callable[[], Any]:
        def ask() -> Any:
            at = int(Head.objects.get().size * after) - 1
            return page_of_log(wanted=list(wanted.items()), after=Cursor(at), limit=50)

        return ask

    def activity(**wanted: Any) -> Callable[[], Any]:
        return lambda: page_of(Event.objects.filter(**wanted), requests.get("/activity/"))

    def older(**wanted: Any) -> Callable[[], Any]:
        def ask() -> Any:
            middle = Leaf.objects.get(leaf_index=Head.objects.get().size // 2).event_id
            return page_of(
                Event.objects.filter(**wanted), requests.get(f"/activity/?after={middle}")
            )

        return ask

    me = Human(pk=BUSY_HUMAN, time_zone="Europe/Berlin")

    def searched(**filters: str) -> Callable[[], Any]:
        """As the list of the activity reads it, but for the agents, of which there are no rows."""
        search = read_search({name.removesuffix("_"): text for name, text in filters.items()}, me)
        return lambda: search.page(None, 50)

    today = datetime.now(UTC).date()
    quarter = {"from_": str(today - timedelta(days=180)), "to": str(today - timedelta(days=90))}

    administrator = Human()
    administrator.set_role(Role.OWNER)

    def listed(query: str) -> Callable[[], Any]:
        def ask() -> Any:
            request = requests.get(f"/admin/audit/event/?{query}")
            request.user = administrator
            return list(admin.get_changelist_instance(request).result_list)

        return ask

    # As when draining: new ids that are not in the log yet.
    some = [new_id_text() for _ in range(8_000)]
    return {
        "API: all, from the first": api(),
        "API: all, from the middle": api(0.5),
        "API: all, the newest": api(0.9999),
        "API: the busy agent (a tenth of all), first": api(agent_id=BUSY),
        "API: the busy agent, from the middle": api(0.5, agent_id=BUSY),
        "API: an agent with one in 10,000": api(agent_id=RARE),
        "API: an agent of the first hundred events, from the middle": api(0.5, agent_id=EARLY),
        "API: an agent of the last hundred events, first": api(agent_id=LATE),
        "API: an agent without events": api(agent_id=NOBODY),
        "API: the busy human": api(human_id=BUSY_HUMAN),
        "API: nine tenths of all (decisions allowed)": api(kind="verifier.decision.allowed"),
        "API: one in forty (decisions denied), from the middle": api(
            0.5, kind="verifier.decision.denied"
        ),
        "API: one in 100,000 (keys disabled)": api(kind="kms.key.disabled"),
        "API: a kind that never was": api(kind="registry.human.deleted"),
        "API: the busy agent's denials (a quarter of what is its own)": api(
            agent_id=BUSY, kind="verifier.decision.denied"
        ),
        "API: the busy agent's keys disabled (there are none; a page of 5,000 looked at)": api(
            agent_id=BUSY, kind="kms.key.disabled"
        ),
        "activity: the busy human": activity(human_id=BUSY_HUMAN),
        "activity: the busy human, from the middle": older(human_id=BUSY_HUMAN),
        "activity: a human without events": activity(human_id=NOBODY),
        "activity: the busy human and agent": activity(human_id=BUSY_HUMAN, agent_id=BUSY),
        "activity: the busy human and another's agent": activity(
            human_id=BUSY_HUMAN, agent_id=RARE
        ),
        "activity: the busy human's refusals": searched(outcome="denied"),
        "activity: what the busy human never did (5,000 looked at)": searched(kind="transact"),
        "activity: a service that the busy human never used": searched(service=str(NOBODY)),
        "activity: refusals of three months half a year ago": searched(outcome="denied", **quarter),
        "spending: the busy human's last 14 days": lambda: count_days(
            me, today - timedelta(days=13)
        ),
        "spending: the newest 10,000 of a year": lambda: count_days(
            me, today - timedelta(days=360)
        ),
        "agent page: the busy agent": lambda: list(
            Event.objects.filter(agent_id=BUSY).order_by("-id")[:20]
        ),
        "agent page: one of the first hundred events": lambda: list(
            Event.objects.filter(agent_id=EARLY).order_by("-id")[:20]
        ),
        "admin: all": listed(""),
        "admin: denied": listed("outcome__exact=denied"),
        "admin: failed (there are none)": listed("outcome__exact=failed"),
        "admin: one in 100,000": listed("kind=kms.key.disabled"),
        "admin: search for the busy agent": listed(f"q={BUSY}"),
        "admin: search for an id that does not exist": listed(f"q={NOBODY}"),
        "admin: search for a request that was never made": listed("q=nothing-of-that-name"),
        "jobs: which of 8,000 ids are recorded": lambda: find_recorded(some),
    }


def measure(ask: Callable[[], Any], rounds: int) -> float:
    """Median seconds, after one uncounted run."""
    ask()
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        ask()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def explain(name: str, ask: Callable[[], Any]) -> None:
    """Print on stderr how each statement of a query was executed."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as context:
        ask()
    print(f"--- {name}", file=sys.stderr)
    for query in list(context.captured_queries):
        if query["sql"].startswith("SELECT"):
            with connection.cursor() as cursor:
                cursor.execute(
                    f"EXPLAIN (ANALYZE, BUFFERS, SUMMARY) {query['sql']}".replace("%", "%%"), None
                )
                print(
                    "\n".join(row[0] for row in cursor.fetchall())[:3000],
                    file=sys.stderr,
                    flush=True,
                )


if __name__ == "__main__":
    main()
