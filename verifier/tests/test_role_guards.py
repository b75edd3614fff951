"""PostgreSQL triggers refuse the verifier's role even if a temporary table shadows the real one."""

import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import StringIO
from uuid import UUID

import pytest
from django.core.management import call_command
from django.db import Error, connection, transaction

from audit import kinds
from audit.db.role_granting import grant_serving_role, grant_verifier_role
from audit.new_ids import new_id
from audit.tests.tampering import execute
from kms.models import EndedSeal
from verifier.tests.scene import Scene
from verifier.tests.test_role import QUOTED, ROLE, rows

pytestmark = [pytest.mark.django_db, pytest.mark.postgres]
GUARDED = {
    "registry_agent": (
        "UPDATE",
        "NEW.status <> 'revoked'",
        "UPDATE public.registry_agent SET status = 'active'",
    ),
    "registry_grant": (
        "UPDATE",
        "NEW.status <> 'withdrawn'",
        "UPDATE public.registry_grant SET status = 'approved'",
    ),
    "verifier_confirmation": (
        "INSERT",
        "NEW.human_id IS NOT NULL",
        (
            "INSERT INTO public.verifier_confirmation (id, grant_id, grant_version, action, "
            "action_digest, idempotency_key,"
            " status, human_id, created_at, expires_at) SELECT gen_random_uuid(), g.id, 1, "
            "'{}', 'x', 'x', 'pending',"
            " g.human_id, now(), now() FROM public.registry_grant g"
        ),
    ),
    "verifier_streamcursor": (
        "INSERT",
        "NEW.number <> 0",
        "INSERT INTO public.verifier_streamcursor (epoch, shard, number, told) VALUES (1, 1, 5, 5)",
    ),
}
EVENT = (
    "INSERT INTO public.audit_event (id, kind, at, actor_kind, actor_id, outcome, request_id, "
    "data, salt)"
    " VALUES (%s, %s, now(), 'human', 'x', 'success', '', '{}', decode(repeat('00', 32), 'hex'))"
)


@pytest.fixture
def bound(db: None) -> None:
    """The role, with the right to create temporary tables from a database administrator."""
    execute(f"CREATE ROLE {QUOTED} LOGIN")
    grant_verifier_role(ROLE)
    _let_make_tables()


@pytest.fixture
def as_role() -> Iterator[None]:
    execute("SET CONSTRAINTS ALL IMMEDIATE")
    yield
    execute("RESET ROLE")


def _let_make_tables() -> None:
    execute(f"GRANT TEMPORARY ON DATABASE {connection.ops.quote_name(_database())} TO {QUOTED}")


def _database() -> str:
    return str(connection.settings_dict["NAME"])


def _is_refused(table: str, statement: str) -> None:
    execute(f"SET ROLE {QUOTED}")
    execute(f"CREATE TEMPORARY TABLE {table} (x int)")
    with pytest.raises(Error, match="permission denied: this role"), transaction.atomic():
        execute(statement)


@pytest.mark.parametrize("table", GUARDED)
def test_AU_27_a_temporary_table_lifts_no_guard(
    place: Scene, bound: None, as_role: None, table: str
) -> None:
    _is_refused(table, GUARDED[table][2])


@pytest.mark.parametrize(
    "kind",
    [
        kinds.GRANT_RESUMED,
        kinds.GRANT_APPROVED,
        kinds.GRANT_RENEWED,
        kinds.GRANT_RELEASED,
        kinds.AGENT_CLAIMED,
        kinds.HUMAN_DELETED,
        kinds.HUMAN_ERASED,
        kinds.CONFIRMATION_CONFIRMED,
        kinds.PRESENCE_BEGUN,
        kinds.HISTORY_CONTINUED,
    ],
)
def test_AU_27_the_verifiers_role_tells_of_no_act_that_is_not_its_own(
    bound: None, as_role: None, kind: str
) -> None:
    execute(f"SET ROLE {QUOTED}")
    execute("CREATE TEMPORARY TABLE audit_event (x int)")
    execute(EVENT, new_id(), kinds.DECISION_DENIED)
    with pytest.raises(Error, match="permission denied: this role"), transaction.atomic():
        execute(EVENT, new_id(), kind)


def test_AU_27_a_month_that_is_made_later_is_guarded_too(bound: None, as_role: None) -> None:
    ahead = datetime(2029, 3, 15, tzinfo=UTC)
    event = UUID(f"{int(ahead.timestamp() * 1000):012x}7000800000000000{secrets.token_hex(2)}")
    execute(f"SET ROLE {QUOTED}")
    assert rows("SELECT agentauth_add_event_month('2029-03-15 00:00Z')") == [(True,)]
    with pytest.raises(Error, match="permission denied: this role"), transaction.atomic():
        execute(EVENT, event, kinds.GRANT_RESUMED)
    execute(EVENT, event, kinds.DECISION_DENIED)
    execute("RESET ROLE")
    assert rows("SELECT count(*) FROM audit_event_2029_03") == [(1,)]


def test_DJ_17_a_temporary_table_takes_no_ended_seal(place: Scene, as_role: None) -> None:
    seal = place.agent.seal
    execute(f"CREATE ROLE {QUOTED} LOGIN")
    grant_serving_role(ROLE)
    _let_make_tables()
    execute(f"SET ROLE {QUOTED}")
    execute("CREATE TEMPORARY TABLE kms_endedseal (seal varchar(80) PRIMARY KEY)")
    execute("UPDATE registry_agent SET seal = NULL")
    execute("DROP TABLE pg_temp.kms_endedseal")
    assert EndedSeal.objects.filter(seal=seal).exists()


@pytest.mark.parametrize("grant", [grant_serving_role, grant_verifier_role])
def test_a_bound_role_makes_no_temporary_table(
    as_role: None, grant: Callable[[str], object]
) -> None:
    execute(f"CREATE ROLE {QUOTED} LOGIN")
    _let_make_tables()
    grant(ROLE)
    execute(f"SET ROLE {QUOTED}")
    with (
        pytest.raises(Error, match="permission denied to create temporary tables"),
        transaction.atomic(),
    ):
        execute("CREATE TEMPORARY TABLE anything (x int)")


def test_the_commands_warn_of_a_role_that_still_makes_temporary_tables(bound: None) -> None:
    quiet, told = StringIO(), StringIO()
    call_command("grant_verifier_role", ROLE, stdout=StringIO(), stderr=quiet)
    assert quiet.getvalue() == ""
    execute('CREATE ROLE "a group"')
    execute(f'GRANT TEMPORARY ON DATABASE {connection.ops.quote_name(_database())} TO "a group"')
    execute(f'GRANT "a group" TO {QUOTED}')
    call_command("grant_verifier_role", ROLE, stdout=StringIO(), stderr=told)
    assert f"revoke TEMPORARY on database {_database()}" in told.getvalue()


def test_every_function_of_ours_names_its_schemas() -> None:
    ours = rows("SELECT proname, proconfig FROM pg_proc WHERE starts_with(proname, 'agentauth')")
    assert len(ours) >= 6
    assert {name for name, config in ours if config != ["search_path=pg_catalog, pg_temp"]} == set()
