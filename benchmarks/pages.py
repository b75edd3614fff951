"""Server time of every page over a large amount of data: `python -m benchmarks.pages`.

Fills a private PostgreSQL: an administrator owns `--own` of the agents, a colleague the others;
each has five grants, one of them pending; the events are real, numbered and signed. Asks for each
page of the URL table through Django's client in this process, middleware and rendering included,
and prints Markdown: median and 95th percentile, this process's own CPU (which other work on the
machine changes least), and queries. A page that takes another number of queries than with a tenth
of the rows, or whose median misses the goal, is named again at the end.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.system_under_test import ENV, machine
from tests import postgres
from tests.live import LiveRegistry

AGENTS, OWN, EVENTS, GRANTS_EACH = 1_000, 50, 1_000_000, 5
GOAL_MS = 100
OK = 200
# As the tests' browser sends it (approvals/tests/cast.py).
ORIGIN = "http://localhost:8000"
CHUNK = 20_000
READ: dict[str, Any] = {"type": "read", "resource": "calendar"}
PAY: dict[str, Any] = {
    "type": "transact",
    "resource": "payments",
    "max_amount": {"value": "100.00", "currency": "EUR"},
}
LIMITS: dict[str, Any] = {
    "max_requests_per_minute": 30,
    "budgets": [{"value": "500.00", "currency": "EUR", "period": "day", "zone": "Europe/Berlin"}],
}
AMOUNT = {"value": "12.50", "currency": "EUR"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--own", type=int, default=OWN, help="the agents of the person who looks")
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="pages whose route contains this")
    parser.add_argument("--profile", action="store_true", help="print where the time of each goes")
    given = parser.parse_args()
    print(f"{machine()}. {' '.join(sys.argv[1:])}\n", flush=True)
    settings = "-c shared_buffers=1GB -c max_wal_size=4GB -c synchronous_commit=off"
    with postgres.server(settings=settings) as server, tempfile.TemporaryDirectory() as folder:
        connect(server.url, Path(folder))
        crowd = Crowd(given.own)
        crowd.grow(agents=max(given.agents // 10, 3), events=given.events // 10)
        few = {route: queries(crowd, path) for route, path in crowd.pages(given.only)}
        crowd.grow(agents=given.agents, events=given.events)
        report(crowd, few, given)


def connect(url: str, folder: Path) -> None:
    """Migrate, and make this process part of the installation."""
    import django

    registry = LiveRegistry(folder, database_url=url, env=ENV | {"PUBLIC_URL": ORIGIN})
    registry.prepare()
    os.environ |= registry.env | {"DJANGO_SETTINGS_MODULE": "agentauth.settings"}
    django.setup()


class Crowd:
    """An administrator with a browser, a colleague, and what belongs to both so far."""

    def __init__(self, own: int) -> None:
        from approvals.tests.cast import registered
        from audit.services import Actor
        from kms.services import ensure_key
        from tests.seed import _granted, _service_provider

        now = datetime.now(UTC)
        for purpose in ("token", "receipt", "audit"):
            ensure_key(purpose=purpose, actor=Actor("system", "benchmark"), now=now)
        self.person = registered("ada@example.org", "Ada", now=now, is_staff=True)
        self.colleague, self.own = registered("bo@example.org", "Bo", now=now).human, own
        wanted = [READ, PAY]
        self.providers = [
            _service_provider(wanted, require_nonce=False)[0] for _ in range(GRANTS_EACH)
        ]
        made = _granted(
            self.person.human, self.providers[0], wanted, LIMITS, "EdDSA", pending=False
        )
        self.first = uuid.UUID(made["grant_id"])
        # Each agent, its approved grant, and its owner.
        self.agents: list[tuple[uuid.UUID, uuid.UUID, uuid.UUID]] = []
        self.events = 0

    def grow(self, *, agents: int, events: int) -> None:
        began = time.monotonic()
        self._add_agents(agents - len(self.agents))
        while self.events < events:
            self._add_events(min(CHUNK, events - self.events))
        self._settle()
        told = f"{agents:,} agents, {events:,} events after {time.monotonic() - began:.0f} s more"
        print(told, file=sys.stderr, flush=True)

    def _add_agents(self, count: int) -> None:
        """Copies of the first agent, each with a grant at every service, the second pending."""
        from django.db import connection, transaction

        from approvals.models import Receipt
        from benchmarks.many_agents import copies_of
        from registry.models import Agent, Grant

        mine = self.person.human
        grant = Grant.objects.select_related("agent__human", "service_provider").get(pk=self.first)
        agents, grants, receipts = [], [], []
        for _ in range(count):
            human = mine if len(self.agents) < self.own else self.colleague
            _pem, agent, own, receipt = copies_of(grant, human, "EdDSA")
            agents.append(agent)
            receipts.append(receipt)
            grants += [own, *self._others(own)]
            self.agents.append((agent.pk, grants[-GRANTS_EACH].pk, human.pk))
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")
            Agent.objects.bulk_create(agents, batch_size=500)
            Grant.objects.bulk_create(grants, batch_size=500)
            Receipt.objects.bulk_create(receipts, batch_size=500)

    def _others(self, own: Any) -> Iterator[Any]:
        from benchmarks.many_agents import copy_of

        now = datetime.now(UTC)
        states = ("pending", "withdrawn", "expired", "revoked")
        for provider, state in zip(self.providers[1:], states, strict=True):
            decided = state == "revoked"
            yield copy_of(
                own,
                service_provider=provider,
                agent=own.agent,
                human=own.human if decided else None,
                status=state,
                request_digest=os.urandom(32),
                created_at=now,
                expires_at=now + timedelta(hours=1),
                ended_at=now if decided else None,
                **(
                    {} if decided else {"capabilities": None, "envelope": None, "valid_until": None}
                ),
            )

    def _add_events(self, count: int) -> None:
        """Decisions of the last minutes, the agents taking turns: the most that pages count."""
        from django.db import transaction

        from audit import kinds
        from audit.log.sequencer import sequence_until_empty
        from audit.new_ids import new_id_text
        from audit.services import NewEvent, check_data, record_many

        now = datetime.now(UTC)
        provider = str(self.providers[0].pk)
        paid = check_data({"action": {**PAY, "amount": AMOUNT}, "capability": "transact:payments"})
        asked = check_data({"action": READ, "capability": "read:calendar"})
        batch = []
        for number in range(count):
            agent, grant, human = self.agents[(self.events + number) % len(self.agents)]
            refused = number % 40 == 0
            batch.append(
                NewEvent(
                    id=new_id_text(),
                    kind=kinds.DECISION_DENIED if refused else kinds.DECISION_ALLOWED,
                    at=now,
                    actor_kind="service_provider",
                    actor_id=provider,
                    request_id="",
                    outcome="denied" if refused else "success",
                    reason="no_capability" if refused else None,
                    data=asked if number % 2 else paid,
                    agent_id=str(agent),
                    human_id=str(human),
                    service_provider_id=provider,
                    grant_id=str(grant),
                )
            )
        with transaction.atomic():
            record_many(batch, now=now)
        sequence_until_empty(now=now)
        self.events += count

    def _settle(self) -> None:
        from django.db import connection

        from audit.checkpoints.signing import checkpoint_log

        checkpoint_log(now=datetime.now(UTC), at_once=True)
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")

    def pages(self, only: str = "") -> Iterator[tuple[str, str]]:
        """Route and path of each page of the URL table that can be opened here."""
        from audit.models import Event
        from registry.caller_limits import limiter
        from registry.models import Grant
        from tests.endpoints import address, pages

        agent, approved, _human = self.agents[0]
        waits = Grant.objects.filter(agent_id=agent, status="pending").values_list("pk", flat=True)
        ids = {
            "agent_id": str(agent),
            "grant_id": str(waits[0]),
            "human_id": str(self.person.human.pk),
            "event_id": str(Event.objects.latest("id").pk),
            "kind": "agent",
            "row_id": str(agent),
            "service_provider_id": str(self.providers[0].pk),
        }
        found = [(route, address(route, ids | self._row(route))) for route in sorted(pages())]
        found += [
            (f"{route} (approved)", f"/approvals/{approved}/")
            for route, _path in found
            if route == "/approvals/<uuid:grant_id>/"
        ]
        found += [
            (
                "/endings/<str:kind>/ (several)",
                "/endings/agent/?" + "&".join(f"id={each}" for each, *_ in self.agents[:3]),
            ),
            ("/activity/ (filtered)", "/activity/?outcome=denied"),
        ]
        for route, path in found:
            # Measuring is quicker than a person may be.
            limiter.cache_clear()
            if only in route and self.person.get(path).status_code == OK:
                yield route, path

    def _row(self, route: str) -> dict[str, str]:
        """The newest row that a page of the control room shows."""
        from django.apps import apps

        app, _, rest = route.removeprefix("/admin/").partition("/")
        if "<path:object_id>" not in route:
            return {}
        row = apps.get_model(app, rest.partition("/")[0])._default_manager.order_by("-pk").first()  # noqa: SLF001 — Django's documented API
        return {"object_id": str(row.pk)} if row else {}


def queries(crowd: Crowd, path: str) -> int:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as made:
        crowd.person.get(path)
    return sum("verifier_home" not in each["sql"] for each in made.captured_queries)


def report(crowd: Crowd, few: dict[str, int], given: argparse.Namespace) -> None:
    told = []
    print("| page | median ms | p95 ms | CPU ms | queries | kB |\n|---|---|---|---|---|---|")
    for route, path in crowd.pages(given.only):
        times, cpu, size = [], [], 0
        for _ in range(given.rounds):
            began, worked = time.perf_counter(), time.process_time()
            answer = crowd.person.get(path)
            times.append((time.perf_counter() - began) * 1000)
            cpu.append((time.process_time() - worked) * 1000)
            assert answer.status_code == OK, (path, answer.status_code)
            size = len(answer.content)
        median, count = statistics.median(times), queries(crowd, path)
        p95 = sorted(times)[int(0.95 * (len(times) - 1))]
        before = few.get(route, count)
        if median > GOAL_MS or count != before:
            told.append(f"{route}: {median:.0f} ms, queries {before} before, {count} now")
        figures = f"{median:.0f} | {p95:.0f} | {statistics.median(cpu):.0f} | {count}"
        print(f"| `{route}` | {figures} | {size / 1000:.0f} |", flush=True)
        if given.profile:
            profile(crowd, path)
    head = "Slower than the goal, or with more queries:" if told else "All pages meet the goal."
    print("\n" + "\n".join([head, *told]))


def profile(crowd: Crowd, path: str) -> None:
    """Print on stderr the functions in which the page spends its time."""
    import cProfile
    import pstats

    with cProfile.Profile() as measured:
        crowd.person.get(path)
    pstats.Stats(measured, stream=sys.stderr).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
