"""Every act writes exactly its own events, in one transaction with its effect: both or neither."""

import inspect
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.core.management import CommandError, get_commands
from django.db import connection
from pytest_django.fixtures import Settings

from agentauth.celery import app
from agentauth.protocol.errors import TemporarilyUnavailableError
from audit import kinds
from audit.models import CheckpointCopy, Event, Opening, RefusalCount
from audit.tests.tampering import execute
from tests.acts import (
    administrators,
    agents,
    approvers,
    operators,
    people,
    restores,
    service_providers,
)
from tests.acts.world import ROWS, Row, World, roles_of
from tests.endpoints import writing
from tests.rows import rows

pytestmark = [pytest.mark.django_db, pytest.mark.sweep]

KINDS = {value for name, value in vars(kinds).items() if name.isupper()}
# Recorded with no other effect: the proof, signature or challenge is used up whatever the outcome.
SAYINGS = {
    kinds.REQUEST_REFUSED,
    kinds.DECISION_DENIED,
    kinds.DECISION_REHEARSED,
    kinds.DECISION_REPEATED,
    kinds.HUMAN_VERIFIED,
    kinds.HUMAN_EXPORTED,
    kinds.SECOND_STEP_TAKEN,
    kinds.REQUEST_ROUTED,
    kinds.REQUEST_PASSED_ON,
    kinds.CLOCK_OFF,
}
# Done on the occasion of a request, which succeeds without it:
# kms/tests/test_process_key_certificates.py. A mail leaves before it is recorded, and is sent
# again: approvals/tests/test_recovery_notices.py.
BESIDE = {kinds.KEY_CERTIFIED, kinds.RECOVERY_NOTICE_SENT, kinds.RECOVERY_NOTICE_FAILED}
# Commands that only read, that run an act listed here under another name, or that write a file
# outside the database.
NO_ACTS = {
    "serve",
    "jobs",
    "verify_audit",
    "check_keys",
    "grant_serving_role",
    "grant_verifier_role",
    "init_production",
    "make_subject_key",
    "drop_audit_partitions",
}
OURS = {"agentauth", "audit", "kms", "registry", "verifier", "approvals"}
BATCH = "POST v1/verify/batch"
# These need the database's own transactions, not one around the test. A batch drops a failed
# connection, and with it the transaction that would roll the test back. A token's row and event are
# one statement that needs no transaction: if it fails, PostgreSQL refuses all that follows in one.
TRANSACTIONAL = {BATCH, "POST v1/tokens"}
# What administrators do as every person does.
FOR_EVERY_PERSON: set[str] = set()
TABLES = (agents, people, service_providers, administrators, approvers, operators, restores)


@pytest.fixture
def world(db: None, now: datetime, settings: Settings, tmp_path: Path) -> World:
    # The demo's secret and the keys go into files.
    settings.VAR_DIR, settings.KEY_DIRECTORY = tmp_path, tmp_path / "keys"
    return World(now)


def state() -> dict[str, Any]:
    """Everything an act may change: our rows, readable personal data in the log, open sessions."""
    signed_in = [row.get_decoded().get("_auth_user_id", "") for row in Session.objects.all()]
    found = rows()
    # The key of a pair's `sub` is recorded before its first token, even if that token is then
    # refused; it grants no right.
    del found["registry.pairwisesubject"]
    return found | {
        "openings": Opening.objects.exclude(event__kind__in=SAYINGS).count(),
        "floods": sorted(map(str, RefusalCount.objects.values_list("route", "error", "count"))),
        "signed in": sorted(filter(None, signed_in)),
        "copies": sorted(CheckpointCopy.objects.values_list("checkpoint", "store")),
    }


def written(before: set[Any]) -> Counter[str]:
    return Counter(Event.objects.exclude(pk__in=before).values_list("kind", flat=True))


def known() -> set[Any]:
    return set(Event.objects.values_list("pk", flat=True))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_AU_1_each_act_writes_exactly_its_events(row: Row, world: World) -> None:
    act = row.given(world)
    events, before = known(), state()
    answer = act()
    assert written(events) == Counter(row.kinds + row.edge), getattr(answer, "content", answer)
    if row.door.startswith(("task", "manage.py")):
        assert named(act) == row.door.split()[1]
    else:
        assert f"{answer.request['REQUEST_METHOD']} {answer.resolver_match.route}" == " ".join(
            row.door.split()[:2]
        )
    # What an administrator does names its roles, or is every person's act (docs/acts.md).
    user = getattr(getattr(answer, "wsgi_request", None), "user", None)
    if getattr(user, "named_role", None):
        assert row.door in roles_of() or row.door in FOR_EVERY_PERSON, row.door
    # An act without an effect could not be told from one that was rolled back, and an effect
    # without an act is not recorded anywhere.
    after = state()
    changed = {name for name in after if after[name] != before[name]} - (
        {"floods"} if row.edge else set()
    )
    assert bool(changed) is (bool(set(row.kinds) - SAYINGS) or bool(row.quiet)), changed


def named(act: Any) -> str:
    """The task or command of an act."""
    if name := getattr(act, "name", None):
        return str(name)
    return str(inspect.getclosurevars(act).nonlocals["name"])


def _unrecorded() -> Iterator[Any]:
    """Each act and kind of event. CI takes one in five: one mechanism records them all."""
    number = itertools.count()
    for row in ROWS:
        for kind in sorted(set(row.kinds) - BESIDE):
            marks = [pytest.mark.long] if next(number) % 5 else []
            if row.door in TRANSACTIONAL:
                marks.append(pytest.mark.django_db(transaction=True))
            yield pytest.param(row, kind, marks=marks, id=f"{row}-{kind.rpartition('.')[2]}")


@pytest.mark.parametrize(("row", "kind"), list(_unrecorded()))
def test_AU_1_AU_2_what_cannot_be_recorded_is_not_done(row: Row, kind: str, world: World) -> None:
    act = row.given(world)
    before = state()
    with refused_events(kind):
        assert_unavailable(act)
    assert state() == before


@pytest.mark.parametrize("row", [row for row in ROWS if row.edge], ids=str)
def test_AU_2_a_refusal_that_cannot_be_recorded_is_503(row: Row, world: World) -> None:
    act = row.given(world)
    with refused_events(*row.edge):
        assert_unavailable(act)


def assert_unavailable(act: Any) -> None:
    try:
        answer = act()
    except (CommandError, TemporarilyUnavailableError):
        # A command reports it on stderr with exit code 1; a job tries again at its next run.
        return
    if answer.resolver_match.route == BATCH.split()[1]:
        assert [each["error"] for each in answer.json()["results"]] == ["temporarily_unavailable"]
    else:
        assert answer.status_code == 503, answer.content
        assert json.loads(answer.content)["error"] == "temporarily_unavailable"


@contextmanager
def refused_events(*refused: str) -> Iterator[None]:
    """Within the context, the database refuses events of these kinds."""
    named = ", ".join(f"'{kind}'" for kind in refused)
    if connection.vendor == "postgresql":
        # PostgreSQL refuses to create a trigger while deferred constraint checks are pending.
        execute("SET CONSTRAINTS ALL IMMEDIATE")
        broken = (
            f"FOR EACH ROW WHEN (NEW.kind IN ({named})) EXECUTE FUNCTION agentauth_refuse('full')"
        )
    else:
        broken = f"WHEN NEW.kind IN ({named}) BEGIN SELECT RAISE(ABORT, 'full'); END"
    execute(f"CREATE TRIGGER broken BEFORE INSERT ON audit_event {broken}")
    yield
    execute(
        "DROP TRIGGER broken" + (" ON audit_event" if connection.vendor == "postgresql" else "")
    )


def test_AU_1_every_kind_of_event_is_written_by_an_act_of_the_table() -> None:
    assert {kind for row in ROWS for kind in row.kinds + row.edge} == KINDS


def test_AU_1_every_entry_point_that_may_write_is_in_the_table() -> None:
    doors = {row.door for row in ROWS}
    found = {*writing(), *commands(), *tasks()}
    assert found - doors == set(), "add a row to a module of tests/acts"
    assert doors - found == set()


def commands() -> Iterator[str]:
    yield from (
        f"manage.py {name}"
        for name, app in get_commands().items()
        if app in OURS and name not in NO_ACTS
    )


def tasks() -> Iterator[str]:
    yield from (f"task {entry['task']}" for entry in app.conf.beat_schedule.values())
