"""The serving role on PostgreSQL can serve, and cannot change what was recorded."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import Error, IntegrityError, connection, transaction

from audit import kinds
from audit.db.role_granting import RoleError, grant_serving_role, grant_verifier_role
from audit.db.role_rights import beyond_verifier, is_verifier_role, missing_rights
from audit.log.erasure import erase_openings
from audit.log.sequencer import sequence_until_empty
from audit.models import Event, Leaf, Opening
from audit.tests.command_output import json_of, output_of
from audit.tests.conftest import MakeEvent
from audit.tests.tampering import execute
from audit.verify.verification import verify_log

pytestmark = [pytest.mark.django_db, pytest.mark.postgres]
ROLE = "serving role"
QUOTED = '"serving role"'
MONTH_MAKER = "agentauth_add_event_month(timestamptz)"
# No role may change the rows of a month or the set of months, whatever its rights on the table.
MONTHS = [
    *(
        f"{act} audit_event_late"
        for act in (
            "TABLE",
            "DELETE FROM",
            "TRUNCATE",
            "DROP TABLE",
            "INSERT INTO audit_event_late TABLE",
        )
    ),
    "UPDATE audit_event_late SET reason = 'x'",
    "ALTER TABLE audit_event_late DISABLE TRIGGER ALL",
    "ALTER TABLE audit_event DETACH PARTITION audit_event_late",
    "CREATE TABLE audit_event_2026_01 PARTITION OF audit_event DEFAULT",
    "SELECT agentauth_attach_events('anything', 'FROM (MINVALUE) TO (MAXVALUE)')",
    "SELECT agentauth_first_id('2026-01-01')",
    "ALTER FUNCTION agentauth_add_event_month(timestamptz) SECURITY INVOKER",
    (
        "CREATE OR REPLACE FUNCTION agentauth_add_event_month(moment timestamptz) RETURNS boolean "
        "LANGUAGE sql AS 'SELECT true'"
    ),
    "DROP FUNCTION agentauth_add_event_month(timestamptz)",
    "LOCK TABLE audit_event IN SHARE UPDATE EXCLUSIVE MODE",
    "ALTER FUNCTION agentauth_add_opening(uuid, uuid, text, bytea, jsonb) SECURITY INVOKER",
    "DROP FUNCTION agentauth_add_opening(uuid, uuid, text, bytea, jsonb)",
]


@pytest.fixture
def serving() -> None:
    """A role of this test's transaction, with its grants."""
    execute(f"CREATE ROLE {QUOTED} LOGIN")
    grant_serving_role(ROLE)


@contextlib.contextmanager
def _as_serving_role() -> Iterator[None]:
    execute(f"SET ROLE {QUOTED}")
    yield
    execute("RESET ROLE")


def test_the_serving_role_records_numbers_erases_and_verifies(
    serving: None, make_event: MakeEvent, now: datetime
) -> None:
    human = uuid.uuid4()
    with _as_serving_role():
        make_event(human_id=human, personal={"name": "Alice"})
        assert sequence_until_empty(now=now) == 1
        assert erase_openings(human_id=human, agent_ids=[], email="") == []
        data: dict[str, Any] = {"agents": [], "events": [], "receipts": {}}
        make_event(kind=kinds.HUMAN_DELETED, human_id=human)
        make_event(kind=kinds.HUMAN_ERASED, human_id=human, data=data)
        assert verify_log().ok
    assert (Event.objects.count(), Leaf.objects.count(), Opening.objects.count()) == (3, 1, 0)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_event SET reason = 'x'",
        "DELETE FROM audit_event",
        "TRUNCATE audit_event CASCADE",
        "UPDATE audit_leaf SET leaf_index = 7",
        "DELETE FROM audit_leaf",
        "TRUNCATE audit_leaf",
        "UPDATE audit_opening SET member = 'x'",
        "TRUNCATE audit_opening",
        "DELETE FROM audit_head",
        "TRUNCATE audit_queueentry",
        "ALTER TABLE audit_event DISABLE TRIGGER ALL",
        "ALTER TABLE audit_event ADD COLUMN more integer",
        "DROP TRIGGER audit_event_kept ON audit_event",
        "DROP TABLE audit_leaf",
        "CREATE TABLE anything (id integer)",
        "DELETE FROM django_migrations",
        *MONTHS,
        "SET session_replication_role = replica",
    ],
)
def test_AU_27_the_serving_role_cannot_change_the_log(
    serving: None, make_event: MakeEvent, statement: str
) -> None:
    make_event(personal={"name": "Alice"})
    # Run deferred checks now; they would refuse some of these statements for another reason.
    execute("SET CONSTRAINTS ALL IMMEDIATE")
    with (
        pytest.raises(Error, match=r"permission denied|must be owner"),
        transaction.atomic(),
        _as_serving_role(),
    ):
        execute(statement)


@pytest.mark.parametrize(
    ("revoke", "missing"),
    [
        ("INSERT ON audit_event", "INSERT on audit_event"),
        ("UPDATE ON audit_head", "UPDATE on audit_head"),
        ("SELECT ON django_migrations", "SELECT on django_migrations"),
        (f"EXECUTE ON FUNCTION {MONTH_MAKER}", f"EXECUTE on {MONTH_MAKER}"),
    ],
)
def test_a_right_that_serving_lacks_is_named(serving: None, revoke: str, missing: str) -> None:
    with _as_serving_role():
        assert missing_rights("serving") == (ROLE, [])
        assert not is_verifier_role()
    execute(f"REVOKE {revoke} FROM {QUOTED}")
    with _as_serving_role():
        assert missing_rights("serving") == (ROLE, [missing])


def test_a_right_that_a_verifier_lacks_is_named_by_its_columns() -> None:
    execute(f"CREATE ROLE {QUOTED} LOGIN")
    grant_verifier_role(ROLE)
    with _as_serving_role():
        assert missing_rights("verifier") == (ROLE, [])
        # The role can do nothing else of the serving role.
        assert "INSERT on registry_grant" in missing_rights("serving")[1]
        assert is_verifier_role()
    execute(f"REVOKE UPDATE (told) ON verifier_streamcursor FROM {QUOTED}")
    with _as_serving_role():
        assert missing_rights("verifier") == (ROLE, ["UPDATE (told) on verifier_streamcursor"])


def test_granting_again_takes_back_what_was_given_by_hand(serving: None) -> None:
    execute(f"GRANT UPDATE, TRUNCATE ON audit_event TO {QUOTED}")
    execute("GRANT DELETE ON audit_leaf TO PUBLIC")
    execute(f"GRANT INSERT ON audit_event_late TO {QUOTED}")
    execute("GRANT SELECT (salt) ON audit_event_late TO PUBLIC")
    execute("GRANT EXECUTE ON FUNCTION agentauth_attach_events(text, text) TO PUBLIC")
    grant_serving_role(ROLE)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT has_table_privilege(%s, 'audit_event', 'UPDATE'), has_table_privilege(%s, "
            "'audit_event', 'TRUNCATE'),"
            " has_table_privilege(%s, 'audit_leaf', 'DELETE'), has_table_privilege(%s, "
            "'audit_event_late', 'INSERT'),"
            " has_column_privilege(%s, 'audit_event_late', 'salt', 'SELECT'),"
            " has_function_privilege(%s, 'agentauth_attach_events(text, text)', 'EXECUTE'),"
            " has_function_privilege(%s, 'agentauth_add_event_month(timestamptz)', 'EXECUTE')",
            [ROLE] * 7,
        )
        assert cursor.fetchone() == (False, False, False, False, False, False, True)


@pytest.mark.parametrize("table", ["audit_event", "audit_event_late"])
def test_what_a_role_may_do_to_the_log_or_a_month_through_another_is_seen(table: str) -> None:
    execute(f"CREATE ROLE {QUOTED} LOGIN")
    execute('CREATE ROLE "a group"')
    execute(f'GRANT UPDATE ON {table} TO "a group"')
    execute(f'GRANT "a group" TO {QUOTED}')
    with pytest.raises(RoleError, match=f"may UPDATE on {table}: revoke that membership"):
        grant_serving_role(ROLE)


def test_a_role_that_no_grant_binds_is_refused() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        owner = cursor.fetchone()[0]
    execute(f"CREATE ROLE {QUOTED} LOGIN")
    execute(f'GRANT "{owner}" TO {QUOTED}')
    for role, why in (
        ("nobody there", "no database role"),
        (owner, "superuser|owns"),
        (ROLE, "owns"),
    ):
        with pytest.raises(RoleError, match=why):
            grant_serving_role(role)


@pytest.mark.parametrize(
    ("attribute", "group", "why"),
    [
        ("CREATEROLE", None, r"has CREATEROLE, .*ALTER ROLE \"serving role\" NOCREATEROLE"),
        ("REPLICATION", None, r"has REPLICATION, .*NOREPLICATION"),
        ("LOGIN", "pg_execute_server_program", "a member of 'pg_execute_server_program'"),
        ("NOINHERIT", "pg_read_all_data", "a member of 'pg_read_all_data'"),
        ("NOINHERIT", "makes roles", "a member of 'makes roles', which has CREATEROLE"),
        ("NOINHERIT", "makes tables", "a member of 'makes tables', .*CREATE on schema public"),
        ("LOGIN", "makes schemas", "has CREATE on database .*roles it is a member of"),
    ],
)
@pytest.mark.parametrize("grant", [grant_serving_role, grant_verifier_role])
def test_a_role_that_can_become_more_is_refused(
    grant: Callable[[str], Any], attribute: str, group: str | None, why: str
) -> None:
    execute('CREATE ROLE "makes roles" CREATEROLE')
    execute('CREATE ROLE "makes tables"')
    execute('GRANT CREATE ON SCHEMA public TO "makes tables"')
    execute('CREATE ROLE "makes schemas"')
    database = connection.ops.quote_name(str(connection.settings_dict["NAME"]))
    execute(f'GRANT CREATE ON DATABASE {database} TO "makes schemas"')
    execute(f"CREATE ROLE {QUOTED} {attribute}")
    if group:
        execute(f'GRANT "{group}" TO {QUOTED}')
    with pytest.raises(RoleError, match=why):
        grant(ROLE)
    # Nor does a verifier start as it.
    with _as_serving_role():
        assert beyond_verifier()


def test_granting_takes_back_create_on_the_schema_and_the_database() -> None:
    """A database that began in PostgreSQL 14 or older lets everyone create in schema public."""
    database = connection.ops.quote_name(str(connection.settings_dict["NAME"]))
    execute(f"CREATE ROLE {QUOTED} LOGIN")
    execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    execute(f"GRANT CREATE ON DATABASE {database} TO {QUOTED}")
    with _as_serving_role():
        assert beyond_verifier() == [
            f"CREATE on database {connection.settings_dict['NAME']}",
            "CREATE on schema public",
        ]
    grant_verifier_role(ROLE)
    with _as_serving_role():
        assert beyond_verifier() == []


def test_create_that_the_owner_cannot_revoke_is_refused() -> None:
    """The schema of such a database belongs to a superuser, not to the owner of the tables."""
    execute(f"CREATE ROLE {QUOTED} LOGIN")
    execute("CREATE ROLE outsider")
    # As granted by another role than the one that revokes.
    execute("GRANT CREATE ON SCHEMA public TO outsider WITH GRANT OPTION")
    execute("SET ROLE outsider")
    execute(f"GRANT CREATE ON SCHEMA public TO {QUOTED}")
    execute("RESET ROLE")
    with pytest.raises(RoleError, match="revoke CREATE on schema public from PUBLIC, this role"):
        grant_serving_role(ROLE)


def test_the_command_reads_the_role_from_the_address_that_serves(
    serving: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "DATABASE_URL", "postgres://serving%20role:secret@db/agentauth")
    answer = json_of("grant_serving_role")
    assert answer["role"] == ROLE
    assert answer["tables"]["audit_event"] == ["INSERT", "SELECT"]
    assert ROLE in output_of("grant_serving_role")
    monkeypatch.setattr(settings, "DATABASE_URL", "postgres://nobody@db/agentauth")
    with pytest.raises(CommandError, match="no database role"):
        call_command("grant_serving_role")


@pytest.mark.parametrize("numbered", [False, True])
def test_an_opening_is_added_with_its_event_and_not_later(
    make_event: MakeEvent, now: datetime, *, numbered: bool
) -> None:
    execute(f"CREATE ROLE {QUOTED} LOGIN")
    grant_verifier_role(ROLE)
    with _as_serving_role():
        event = make_event(personal={"name": "Alice", "email": "alice@example.org"})
    assert Opening.objects.filter(event=event).count() == 2
    if numbered:
        sequence_until_empty(now=now)
    # A process that can only insert tries to restore what was erased.
    Opening.objects.filter(event=event).delete()
    with (
        pytest.raises(IntegrityError, match="added together with its event"),
        transaction.atomic(),
        _as_serving_role(),
    ):
        execute(
            "SELECT agentauth_add_opening(%s, %s, 'name', %s, '\"Alice\"')",
            uuid.uuid4(),
            event.id,
            bytes(32),
        )
    assert not Opening.objects.exists()
