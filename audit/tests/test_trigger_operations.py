"""The trigger helpers on their own table: every transition of a state machine, and undoing them."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.db import IntegrityError, connection, transaction
from django.db.migrations import RunPython
from django.db.migrations.state import ProjectState

from audit.db.trigger_operations import append_only, state_machine
from audit.tests.tampering import execute

pytestmark = pytest.mark.django_db
STATES = ["draft", "open", "closed"]
ALLOWED = {("draft", "open"), ("open", "closed"), ("draft", "closed")} | {
    (state, state) for state in STATES
}


def _run(operation: RunPython, *, backwards: bool = False) -> None:
    act: Any = operation.reverse_code if backwards else operation.code
    with connection.schema_editor(atomic=False) as editor:
        act(apps, editor)


@pytest.fixture
def table(transactional_db: None) -> Iterator[str]:
    execute("CREATE TABLE audit_trial (id integer PRIMARY KEY, state varchar(16) NOT NULL)")
    yield "audit_trial"
    execute("DROP TABLE audit_trial")


@pytest.fixture
def machine(table: str) -> RunPython:
    operation = state_machine(
        table,
        "state",
        transitions={"draft": ["open", "closed"], "open": ["closed"]},
        initial=["draft", "open"],
    )
    _run(operation)
    return operation


@pytest.mark.parametrize("old", STATES)
@pytest.mark.parametrize("new", STATES)
def test_only_the_named_steps_are_possible(machine: RunPython, old: str, new: str) -> None:
    execute("INSERT INTO audit_trial VALUES (1, 'draft')")
    execute("UPDATE audit_trial SET state = %s", old)
    if (old, new) in ALLOWED:
        assert execute("UPDATE audit_trial SET state = %s", new) == 1
        return
    with pytest.raises(IntegrityError, match="cannot go there"), transaction.atomic():
        execute("UPDATE audit_trial SET state = %s", new)


@pytest.mark.parametrize(
    ("state", "born"), [("draft", True), ("open", True), ("closed", False), ("else", False)]
)
def test_a_row_is_born_in_an_initial_state(machine: RunPython, state: str, born: bool) -> None:
    if born:
        execute("INSERT INTO audit_trial VALUES (1, %s)", state)
        return
    with pytest.raises(IntegrityError), transaction.atomic():
        execute("INSERT INTO audit_trial VALUES (1, %s)", state)


def test_undoing_the_migration_lifts_the_rule(machine: RunPython) -> None:
    _run(machine, backwards=True)
    execute("INSERT INTO audit_trial VALUES (1, 'closed')")


def test_undoing_append_only_lifts_the_rule(table: str) -> None:
    operation = append_only(table)
    _run(operation)
    execute("INSERT INTO audit_trial VALUES (1, 'x')")
    with pytest.raises(IntegrityError), transaction.atomic():
        execute("DELETE FROM audit_trial")
    _run(operation, backwards=True)
    assert execute("DELETE FROM audit_trial") == 1


def test_a_deletable_table_still_refuses_changes(table: str) -> None:
    _run(append_only(table, deletable=True))
    execute("INSERT INTO audit_trial VALUES (1, 'x')")
    with pytest.raises(IntegrityError), transaction.atomic():
        execute("UPDATE audit_trial SET state = 'y'")
    assert execute("DELETE FROM audit_trial") == 1


def test_state_name_that_is_not_a_word_fails_the_migration() -> None:
    with pytest.raises(ValueError, match="not a state"):
        state_machine("t", "state", transitions={"a": ["b'); DROP TABLE t; --"]}, initial=["a"])


def test_every_promised_trigger_exists_after_all_migrations() -> None:
    """SQLite rebuilds a table for some migrations and drops its triggers with the old one."""
    column, catalogue = ("name", "sqlite_master WHERE type = 'trigger'")
    if connection.vendor == "postgresql":
        column, catalogue = ("tgname", "pg_trigger WHERE NOT tgisinternal")
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {column} FROM {catalogue}")  # noqa: S608 — a test's own words
        found = {row[0] for row in cursor.fetchall()}
    assert {
        "audit_event_kept",
        "audit_leaf_kept",
        "audit_opening_kept",
        "kms_key_state_step",
    } <= found
    assert {"audit_event_not_emptied", "audit_leaf_not_emptied", "kms_key_state_birth"} <= found


def test_project_state_is_untouched_by_the_operation() -> None:
    state = ProjectState()
    append_only("t").state_forwards("audit", state)
    assert state == ProjectState()
