"""docs/archive-queries.md: its SQL, run by DuckDB on a real archive, answers as the database."""

import contextlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import time_machine
from django.core.management import call_command
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.protocol.money import MINOR_DIGITS
from approvals.tests.cast import Person
from approvals.tests.database_rollback import restored
from audit import kinds
from audit.checkpoints.signing import checkpoint_log
from audit.db.partition_creation import ensure_partitions
from audit.log.refusal_counts import Batches
from audit.models import Event, Leaf, Segment
from audit.new_ids import first_id_at
from audit.services import seal_audit
from kms.services import ensure_key
from registry.models import Agent, Grant, ServiceProvider
from registry.services.agents import suspend_agent
from registry.services.grants import revoke_grant
from registry.services.service_providers import change_audience, create_service_provider
from registry.tests.cast import TESTER, AgentClient
from verifier.tests.scene import LOOK, PAY, READ, SYSTEM, Scene, key, pay, scene

if TYPE_CHECKING:
    import duckdb

pytestmark = pytest.mark.django_db
PAGE = Path(__file__).parents[2] / "docs/archive-queries.md"
MAY, JUNE = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)
Rows = list[tuple[Any, ...]]


def blocks() -> list[tuple[str, str]]:
    """The SQL of the page: the heading above each block, and its text."""
    heading, found = "", []
    pattern = r"^#+ ([^\n]+)$|^```sql\n(.*?)^```$"
    for match in re.finditer(pattern, PAGE.read_text(), re.MULTILINE | re.DOTALL):
        heading = match[1] or heading
        if match[2]:
            found.append((heading, match[2]))
    return found


SETTINGS, OPEN, VIEWS = (text for _, text in blocks()[:3])
QUESTIONS = blocks()[3:-2]
(_, FROM_LINES), (_, COPY) = blocks()[-2:]


@pytest.fixture
def now(db: None) -> Iterator[datetime]:
    # As the jobs do ahead of time.
    ensure_partitions([first_id_at(MAY), first_id_at(JUNE)])
    with time_machine.travel(MAY + timedelta(days=10, hours=9), tick=False):
        yield timezone.now()


@pytest.fixture
def service_provider(db: None, now: datetime) -> ServiceProvider:
    """Beside those of `scene`, whose addresses begin alike."""
    provider, _secret = create_service_provider(
        name="Acme Payments",
        audience="http://127.0.0.1:8001/acme",
        allowed=("read:calendar", "transact:payments"),
        actor=TESTER, now=now,
    )  # fmt: skip
    return provider


@pytest.fixture
def folder(settings: Settings, tmp_path: Path, keys: None, now: datetime) -> Path:
    settings.AUDIT_STORE = f"file:{tmp_path / 'archive'}"
    ensure_key(purpose="audit", actor=TESTER, now=now)
    return tmp_path / "archive"


def archive() -> None:
    """What the jobs do within the hour."""
    seal_audit(now=timezone.now())
    checkpoint_log(now=timezone.now(), at_once=True)
    call_command("archive_audit", "--json")


@contextlib.contextmanager
def opened(folder: Path, agent: Agent) -> Iterator["duckdb.DuckDBPyConnection"]:
    """DuckDB after the page's first blocks; only the folder and the agent's id are replaced."""
    # Only here: each process of the unit tests would spend the time to import it.
    import duckdb

    told = SETTINGS.replace("/srv/archive", str(folder))
    told = told.replace("01980000-0000-7000-8000-000000000000", str(agent.pk))
    assert told.count(str(folder)) == told.count(str(agent.pk)) == 1
    with duckdb.connect() as connection:
        for block in (told, OPEN, VIEWS):
            connection.execute(block)
        yield connection


@pytest.fixture
def shop(
    folder: Path,
    alice: Person,
    admin: Person,
    reading: Grant,
    paying: Grant,
    agent: AgentClient,
    service_provider: ServiceProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    """A month and a half with payments, refusals, approvals and ends, in two segments."""
    admin.sign_in()
    assert admin.deny_as_admin(reading).status_code == 200
    alice.sign_in()
    fields = {"permission.0": "on", "permission.1": "on", "days": "4"}
    assert alice.approve(paying, **fields).status_code == 200
    assert alice.client.post(f"/approvals/{paying.pk}/renew").status_code == 302
    assert alice.approve(paying).status_code == 200
    # Where days begin earlier, it is the next one.
    with time_machine.travel(MAY + timedelta(days=12, hours=23), tick=False):
        _spend_in_yen()
        place = _pay_and_be_refused(monkeypatch)
    archive()
    with time_machine.travel(JUNE + timedelta(days=3, minutes=1), tick=False):
        later = scene(PAY, budgets=[_budget("EUR")])
        assert later.pay("7.50")["valid"]
        change_audience(
            service_provider=later.provider,
            audience=f"{later.provider.audience}/moved", actor=SYSTEM, now=timezone.now(),
        )  # fmt: skip
        suspend_agent(agent=place.agent, actor=TESTER, now=timezone.now())
        paying.refresh_from_db()
        revoke_grant(grant=paying, actor=TESTER, now=timezone.now())
        archive()
    assert Segment.objects.count() == 2
    return place


def _budget(currency: str) -> dict[str, Any]:
    value = "999999999999" + ("." + "0" * MINOR_DIGITS[currency] if MINOR_DIGITS[currency] else "")
    return {"value": value, "currency": currency, "period": "total", "zone": "UTC"}


def _spend_in_yen() -> None:
    most = {"value": "900000000000", "currency": "JPY"}
    yen = scene({**PAY, "max_amount": most}, budgets=[_budget("JPY")])
    answer = yen.ask(pay("1") | {"amount": most}, idempotency_key=key())
    assert answer["valid"], answer


def _pay_and_be_refused(monkeypatch: pytest.MonkeyPatch) -> Scene:
    most = {"value": "900000000000.00", "currency": "EUR"}
    place = scene(READ, {**PAY, "max_amount": most}, budgets=[_budget("EUR")])
    for value in ("0.10", "0.10", "0.10", "900000000000.00"):
        assert place.pay(value)["valid"]
    operation = key()
    assert place.pay("3.00", operation)["valid"]
    assert place.pay("3.00", operation)["valid"]
    assert place.pay("4.00", dry_run=True)["valid"]
    assert not place.pay("900000000000.00")["valid"]
    assert place.ask(LOOK)["valid"]
    assert not place.ask({"type": "write", "resource": "calendar"})["valid"]
    # One event for several unreadable tokens.
    batches = Batches(seconds=3600)
    monkeypatch.setattr("verifier.credential_checks._UNRECOGNISED", batches)
    for _ in range(4):
        place.ask(LOOK, token="nonsense", proof=place.proof("nonsense"))
    monkeypatch.setattr(batches, "_next_at", {})
    place.ask(LOOK, token="nonsense", proof=place.proof("nonsense"))
    # And a minute of strangers, of whom ten have an event each.
    for _ in range(12):
        assert place.post(place.body(LOOK), secret="wrong").status_code == 401
    return place


# The database's own answers, each from rows and with Python's arithmetic. `start` and `end` are
# May's.


def _events(**where: Any) -> list[Event]:
    found = Leaf.objects.select_related("event").order_by("leaf_index")
    return [leaf.event for leaf in found.filter(**{f"event__{k}": v for k, v in where.items()})]


def _decisions(**where: Any) -> Iterator[tuple[Event, str, str | None, Decimal | None, str | None]]:
    """Event, verdict, type of act, amount, currency."""
    for event in _events(kind__startswith="verifier.decision.", **where):
        action = event.data["action"] or {}
        money = action.get("amount") or {}
        amount = Decimal(money["value"]) if money else None
        verdict = event.kind.rsplit(".", 1)[1]
        yield event, verdict, action.get("type"), amount, money.get("currency")


IN_MAY = {"at__gte": MAY, "at__lt": JUNE}


def _name(event: Event) -> str | None:
    if event.service_provider_id is None:
        return None
    return ServiceProvider.objects.get(pk=event.service_provider_id).name


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def whole(_place: Scene) -> Rows:
    assert Event.objects.count() == Leaf.objects.count()
    return [(2, Leaf.objects.count(), Event.objects.count(), 0)]


def what_an_agent_did(place: Scene) -> Rows:
    calls: Counter[Any] = Counter()
    sums: dict[Any, Decimal] = defaultdict(Decimal)
    for event, verdict, act, amount, currency in _decisions(agent_id=place.agent.pk, **IN_MAY):
        row = (event.at.date(), _name(event), act, verdict, event.reason, currency)
        calls[row] += event.data.get("count", 1)
        sums[row] += amount or 0
    assert len(calls) > 4
    return [
        (*row[:5], number, sums[row] if row[5] else None, row[5]) for row, number in calls.items()
    ]


def each_event_of_an_agent(place: Scene) -> Rows:
    return [
        (e.leaf.leaf_index, e.at, e.kind, e.outcome, e.reason, _text(e.grant_id))
        for e in _events(agent_id=place.agent.pk, **IN_MAY)
    ]


def spent(_place: Scene) -> Rows:
    payments: Counter[Any] = Counter()
    sums: dict[Any, Decimal] = defaultdict(Decimal)
    for event, verdict, _act, amount, currency in _decisions(**IN_MAY):
        if verdict == "allowed" and amount is not None:
            row = (_name(event), currency)
            payments[row] += 1
            sums[row] += amount
    assert Decimal("900000000003.30") in sums.values()
    return [(*row, number, sums[row]) for row, number in payments.items()]


def refusals_by_week(_place: Scene) -> Rows:
    calls: Counter[Any] = Counter()
    for event, verdict, *_ in _decisions():
        if verdict == "denied":
            day = event.at.date()
            calls[day - timedelta(days=day.weekday()), event.reason] += event.data.get("count", 1)
    assert 5 in calls.values()
    return [(*row, number) for row, number in calls.items()]


def requests_refused(_place: Scene) -> Rows:
    calls: Counter[Any] = Counter()
    for event in _events(kind__in=[kinds.REQUEST_REFUSED, kinds.REFUSALS_SUPPRESSED]):
        told = event.data
        calls[told["route"], told["error"], event.actor_kind] += told.get("count", 1)
    assert {"anonymous", "system"} <= {row[2] for row in calls}
    return [(*row, number) for row, number in calls.items()]


def approvals(_place: Scene) -> Rows:
    asked = {e.grant_id: e.at for e in _events(kind=kinds.GRANT_REQUESTED)}
    decided = [kinds.GRANT_APPROVED, kinds.GRANT_DENIED, kinds.GRANT_RENEWED]
    found = [
        (
            e.leaf.leaf_index, e.at, e.kind.rsplit(".", 1)[1], e.actor_id, str(e.human_id),
            str(e.agent_id), str(e.grant_id), _name(e), e.at - asked[e.grant_id],
            (e.data.get("envelope") or {}).get("budgets"), e.data.get("valid_until"),
        )
        for e in _events(kind__in=decided)
    ]  # fmt: skip
    # An administrator who denied, an owner who approved.
    assert {row[2] for row in found if row[3] != row[4]} == {"denied"}
    assert {row[2] for row in found if row[3] == row[4]} == {"approved", "renewed"}
    return found


def never_used(_place: Scene) -> Rows:
    used = {e.grant_id for e, verdict, *_ in _decisions() if e.grant_id and verdict == "allowed"}
    found = []
    for grant in Grant.objects.exclude(pk__in=used).filter(capabilities__isnull=False):
        events = Event.objects.filter(grant_id=grant.pk)
        found.append(
            (
                str(grant.pk), str(grant.agent_id), str(grant.agent.human_id), grant.decided_at,
                events.filter(kind=kinds.TOKEN_ISSUED).count(),
                events.filter(kind=kinds.DECISION_DENIED).count(),
            )
        )  # fmt: skip
    assert found
    return found


def acts_used(_place: Scene) -> Rows:
    acts: dict[Any, list[Any]] = defaultdict(list)
    for event, verdict, act, *_ in _decisions():
        if verdict == "allowed":
            acts[event.grant_id].append((act, event.at))
    return [
        (str(grant), sorted({act for act, _ in each}), len(each), max(at for _, at in each))
        for grant, each in acts.items()
    ]


def ends(_place: Scene) -> Rows:
    found = [
        (
            e.leaf.leaf_index, e.at, e.kind, e.actor_kind, e.actor_id,
            *map(_text, (e.agent_id, e.human_id, e.service_provider_id, e.grant_id)), e.reason,
        )
        for e in _events(kind__in=_ending_kinds())
    ]  # fmt: skip
    assert {kinds.AGENT_SUSPENDED, kinds.GRANT_REVOKED} <= {row[2] for row in found}
    return found


def _ending_kinds() -> list[str]:
    every = [value for name, value in vars(kinds).items() if name.isupper()]
    words = {"suspended", "revoked", "ended", "removed", "deleted", "erased", "disabled"}
    return [kind for kind in every if words & {re.split(r"[._]", kind)[-1]}]


def acts_of_people(_place: Scene) -> Rows:
    acts: dict[Any, list[datetime]] = defaultdict(list)
    for event in _events(actor_kind="human", **IN_MAY):
        acts[event.actor_id, event.kind].append(event.at)
    assert len({human for human, _ in acts}) > 2
    return [(*row, len(times), max(times)) for row, times in acts.items()]


ANSWERS: dict[str, list[Callable[[Scene], Rows]]] = {
    "Is every segment there?": [whole],
    "What did agent X do in May?": [what_an_agent_did, each_event_of_an_agent],
    "What was spent at each service, in each currency?": [spent],
    "Why were calls refused, week by week?": [refusals_by_week],
    "Which requests were refused before a decision?": [requests_refused],
    "Who approved what for whom?": [approvals],
    "Which grants were never used?": [never_used, acts_used],
    "Who suspended or ended what?": [ends],
    "What did people do?": [acts_of_people],
}


def plain(rows: Rows) -> list[str]:
    """Rows in one order and spelling; a float is not the equal of an exact amount."""

    def spell(value: Any) -> str:
        if isinstance(value, Decimal):
            return f"{value:.4f}"
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat()
        if isinstance(value, str) and value[:2] == "[{":
            value = json.loads(value)
        if isinstance(value, list):
            return json.dumps(value, sort_keys=True)
        return repr(value)

    return sorted(" | ".join(map(spell, row)) for row in rows)


def test_each_query_of_the_page_answers_as_the_database(shop: Scene, folder: Path) -> None:
    told = Counter(heading for heading, _ in QUESTIONS)
    assert told == {heading: len(answers) for heading, answers in ANSWERS.items()}
    expected = {heading: [each(shop) for each in answers] for heading, answers in ANSWERS.items()}
    with opened(folder, shop.agent) as connection:
        _compare(connection, expected)
        # The same from the lines, which alone are proved.
        rows = connection.execute("SELECT * FROM event ORDER BY leaf_index").fetchall()
        connection.execute(FROM_LINES)
        columns = (
            "SELECT leaf_index, id, kind, occurred_at, actor_kind, actor_id, agent_id, human_id, "
        )
        columns += "service_provider_id, grant_id, token_jti, reason, outcome, request_id, data"
        lines = connection.execute(f"{columns} FROM event ORDER BY leaf_index").fetchall()
        assert [row[:-1] for row in lines] == [row[:-1] for row in rows]
        assert [json.loads(row[-1]) for row in lines] == [json.loads(row[-1]) for row in rows]
        _compare(connection, expected)


def _compare(connection: "duckdb.DuckDBPyConnection", expected: dict[str, list[Rows]]) -> None:
    asked: Counter[str] = Counter()
    for heading, query in QUESTIONS:
        rows = connection.execute(query).fetchall()
        assert plain(rows) == plain(expected[heading][asked[heading]]), heading
        asked[heading] += 1


def test_the_copy_for_other_engines_holds_every_event(
    shop: Scene, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(folder, shop.agent) as connection:
        connection.execute(COPY)
        copied = connection.execute(
            "SELECT month, count(*) FROM read_parquet('events/*/*.parquet') GROUP BY ALL ORDER BY 1"
        ).fetchall()
    months = Counter(f"{event.at:%Y-%m}" for event in Event.objects.all())
    assert copied == sorted(months.items())
    assert len(months) == 2


def test_segments_lost_by_a_restore_are_in_no_answer(
    shop: Scene, folder: Path, now: datetime
) -> None:
    def lose() -> None:
        assert scene(PAY, budgets=[_budget("EUR")]).pay("66.60")["valid"]
        archive()

    with time_machine.travel(JUNE + timedelta(days=5), tick=False):
        restored(happens=lose)
        scene(PAY)
        archive()
    found = list(folder.glob("objects/*.parquet"))
    assert len(found) > Segment.objects.count() > 2
    with opened(folder, shop.agent) as connection:
        rows = connection.execute("SELECT leaf_index, id FROM event ORDER BY 1").fetchall()
        assert rows == [
            (leaf.leaf_index, str(leaf.event_id)) for leaf in Leaf.objects.order_by("leaf_index")
        ]
        _, check = QUESTIONS[0]
        [(segments, end, events, missing)] = connection.execute(check).fetchall()
    assert (segments, missing) == (Segment.objects.count(), 0)
    assert end == events == Leaf.objects.count()


def test_the_archive_that_is_queried_names_nobody(shop: Scene, folder: Path) -> None:
    texts = ("alice@example.org", "Alice", "Research Assistant", "To find a slot")
    with opened(folder, shop.agent) as connection:
        for text in texts:
            [(found,)] = connection.execute(
                "SELECT count(*) FROM event WHERE contains(CAST(event AS VARCHAR), ?)", [text]
            ).fetchall()
            assert not found, text
