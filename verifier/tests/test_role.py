"""The verifier's role on PostgreSQL: all its rights, all it does with them, and what is denied."""

import base64
import contextlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import Error, connection, transaction
from django.utils import timezone

from audit import kinds
from audit.db.role_granting import RoleError, grant_verifier_role
from audit.models import Event
from audit.services import SYSTEM
from audit.tests.command_output import json_of, output_of
from audit.tests.tampering import execute
from audit.tests.test_role_rights import MONTHS
from registry.models import Agent, BarredKey, Grant
from verifier.models import AgentOperation, Confirmation, Home, StateChange, StreamCursor
from verifier.services.host_clock_check import HostClock
from verifier.services.replay_epochs import ClockOff, end_epoch
from verifier.services.replay_epochs import start_epoch as begin_epoch
from verifier.services.state_change_feed import publish, state_since
from verifier.tests.scene import LOOK, PAY, READ, Scene, key, pay, scene
from verifier.tests.test_presence_leases import begin
from verifier.tests.test_token_and_proof import proof_with_private_key

pytestmark = [pytest.mark.django_db, pytest.mark.postgres]
# Roles belong to the whole server, where other test processes make theirs.
ROLE = f"verifier role {os.getpid()}"
QUOTED = f'"{ROLE}"'
EVERYTHING = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")

# The role's rights on each table, columns in brackets. The last tables give it none.
EXPECTED = {
    "approvals_receipt": "SELECT (compact, decision, kind, subject)",
    "audit_event": "INSERT, SELECT (id)",
    "audit_queueentry": "INSERT, SELECT",
    "audit_refusalcount": "INSERT, SELECT, UPDATE (count)",
    "django_migrations": "SELECT",
    "django_session": "SELECT (expire_date, session_key)",
    "kms_endedseal": "SELECT",
    "kms_key": "SELECT",
    "kms_keycertificate": "SELECT",
    "kms_sealspending": "SELECT",
    "kms_widersealspending": "SELECT",
    "registry_agent": "SELECT, UPDATE (status)",
    "registry_barredkey": "INSERT, SELECT",
    "registry_grant": "SELECT, UPDATE (ended_at, status)",
    "registry_human": "SELECT",
    "registry_installation": "SELECT",
    "registry_serviceprovider": "SELECT",
    "registry_serviceprovidersecret": "SELECT",
    "registry_spentproof": "INSERT, SELECT (digest)",
    "registry_token": "SELECT",
    "verifier_agentoperation": "DELETE, INSERT, SELECT",
    "verifier_confirmation": "INSERT, SELECT, UPDATE (consumed_at, status)",
    "verifier_grantledger": "INSERT, SELECT, UPDATE (spent, tat_us, uses)",
    "verifier_home": (
        "INSERT, SELECT, UPDATE (back_after, began_at, epoch, kind, leaving_at, leaving_for, "
        "servers)"
    ),
    "verifier_presencelease": "SELECT",
    "verifier_providercall": "INSERT, SELECT, UPDATE (answer, body_sha256, expires_at)",
    "verifier_statechange": "INSERT, SELECT",
    "verifier_streamcursor": "INSERT, SELECT, UPDATE (told)",
} | dict.fromkeys(
    [
        *("approvals_challenge", "approvals_humansession", "approvals_notification"),
        "approvals_notificationchannel",
        *("approvals_passkey", "approvals_recovery", "approvals_setupcode"),
        *("audit_checkpoint", "audit_checkpointcopy", "audit_cosignature", "audit_droppedmonth"),
        *(
            "audit_head",
            "audit_leaf",
            "audit_logbreak",
            "audit_node",
            "audit_opening",
            "audit_segment",
        ),
        *("auth_group", "auth_group_permissions", "auth_permission"),
        *("django_admin_log", "django_content_type"),
        *("registry_absence", "registry_approvalrule", "registry_approvergroup"),
        *("registry_catalogueversion", "registry_enrolmentcode", "registry_groupmember"),
        *("registry_idempotencyrecord", "registry_pairwisesubject", "registry_renewal"),
        "registry_servicelogo",
    ],
    "",
)


@pytest.fixture
def bound(db: None) -> None:
    """The role of this test's transaction, with its grants."""
    execute(f"CREATE ROLE {QUOTED} LOGIN")
    grant_verifier_role(ROLE)


@contextlib.contextmanager
def _as_verifier() -> Iterator[None]:
    execute(f"SET ROLE {QUOTED}")
    yield
    execute("RESET ROLE")


def asked(place: Scene, body: object, **more: Any) -> dict[str, Any]:
    """The answer under the role, a yes or a no."""
    with _as_verifier():
        answer: dict[str, Any] = json.loads(place.post(body, **more).content)
    return answer


def rows(query: str, *values: str | list[str]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return list(cursor.fetchall())


def found_rights() -> dict[str, str]:
    """The role's rights on every table of the schema, in the form of EXPECTED."""
    columns: dict[str, set[str]] = {}
    query = (
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = "
        "'public'"
    )
    for table, column in rows(query):
        columns.setdefault(table, set()).add(column)
    found = {}
    for table, every in columns.items():
        rights = []
        for right in sorted(EVERYTHING):
            if rows("SELECT has_table_privilege(%s, %s, %s)", ROLE, table, right) == [(True,)]:
                rights.append(right)
            elif right in {"SELECT", "INSERT", "UPDATE"}:
                named = (
                    "SELECT name FROM unnest(%s::text[]) name WHERE has_column_privilege(%s, %s, "
                    "name, %s) ORDER BY name"
                )
                some = rows(named, sorted(every), ROLE, table, right)
                rights += [f"{right} ({', '.join(name for (name,) in some)})"] if some else []
        found[table] = ", ".join(rights)
    return found


def decided_rights() -> dict[str, str]:
    """EXPECTED, plus no right on any monthly partition of the log."""
    months = rows("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'")
    assert len(months) >= 6
    return EXPECTED | {name: "" for (name,) in months}


def test_every_right_on_every_table_was_decided(bound: None) -> None:
    """A new table fails here until its rights for the verifier are decided."""
    assert found_rights() == decided_rights()


def test_granting_again_takes_back_what_was_given_by_hand(bound: None) -> None:
    execute(f"GRANT UPDATE (capabilities), DELETE ON registry_grant TO {QUOTED}")
    execute("GRANT SELECT ON approvals_passkey TO PUBLIC")
    execute(f"GRANT SELECT (data), INSERT ON audit_event_late TO {QUOTED}")
    grant_verifier_role(ROLE)
    assert found_rights() == decided_rights()


@pytest.mark.parametrize("group", ["pg_write_all_data", "pg_read_all_data", '"a group"'])
def test_role_with_extra_rights_through_another_role_gets_nothing(group: str) -> None:
    execute(f"CREATE ROLE {QUOTED} LOGIN NOINHERIT")
    if group == '"a group"':
        execute(f"CREATE ROLE {group}")
        execute(f"GRANT UPDATE (jkt) ON registry_agent TO {group}")
    execute(f"GRANT {group} TO {QUOTED}")
    with pytest.raises(RoleError, match="revoke that membership"):
        grant_verifier_role(ROLE)
    # No rights of its own: the role does not inherit.
    assert rows("SELECT has_table_privilege(%s, 'audit_event', 'INSERT')", ROLE) == [(False,)]


def test_the_command_names_the_role_and_its_rights(bound: None) -> None:
    answer = json_of("grant_verifier_role", ROLE)
    assert answer["role"] == ROLE
    told = {table: ", ".join(rights) for table, rights in answer["tables"].items()}
    assert told == {table: rights for table, rights in EXPECTED.items() if rights}
    assert ROLE in output_of("grant_verifier_role", ROLE)
    with pytest.raises(CommandError, match="no database role"):
        call_command("grant_verifier_role", "nobody there")


# --- What it does


def test_it_decides_light_and_durable_questions_and_refuses(place: Scene, bound: None) -> None:
    body = place.body(LOOK)
    assert asked(place, body)["valid"]
    assert asked(place, body)["reason"] == "replayed"
    assert asked(place, place.body(LOOK, proof="nonsense"))["error"] == "invalid_dpop_proof"
    assert asked(place, body, secret="wrong")["error"] == "invalid_client"
    assert asked(place, b"{")["error"] == "invalid_request"
    watched = scene(max_uses=2, requires_human_online=True)
    begin(watched.human)
    token, operation = watched.token(), key()
    assert asked(watched, watched.body(LOOK, token=token, dry_run=True))["valid"]
    assert asked(watched, watched.body(LOOK, token=token, idempotency_key=operation))["valid"]
    assert asked(watched, watched.body(LOOK, token=token, idempotency_key=operation))["repeated"]
    body, call = watched.body(LOOK, token=token), key()
    first, second = (asked(watched, body, call_key=call) for _ in range(2))
    assert first["valid"]
    assert first == second
    assert asked(watched, watched.body(LOOK, token=token))["error"] == "envelope_exceeded"
    assert Event.objects.filter(outcome="denied").count() == 5


def test_a_remembered_operation_makes_room_when_its_day_is_over(place: Scene, bound: None) -> None:
    operation = key()
    assert place.ask(LOOK, idempotency_key=operation)["valid"]
    AgentOperation.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert "repeated" not in asked(place, place.body(LOOK, idempotency_key=operation))
    assert AgentOperation.objects.filter(expires_at__gt=timezone.now()).count() == 1


def test_it_asks_for_a_confirmation_and_uses_one(bound: None) -> None:
    place, operation = scene(PAY, confirm_above={"value": "10.00", "currency": "EUR"}), key()
    answer = asked(place, place.body(pay("20.00"), idempotency_key=operation))
    assert answer["error"] == "step_up_required"
    place.confirm(answer)
    assert asked(place, place.body(pay("20.00"), idempotency_key=operation))["valid"]
    asked(place, place.body(pay("20.00"), idempotency_key=key()))
    Confirmation.objects.filter(status="pending").update(
        expires_at=timezone.now() - timedelta(seconds=1)
    )
    asked(place, place.body(pay("20.00"), idempotency_key=key()))
    assert sorted(Confirmation.objects.values_list("status", flat=True)) == [
        "consumed",
        "expired",
        "pending",
    ]


def test_proof_that_leaks_its_private_key_ends_agent_and_its_requests(
    place: Scene, bound: None
) -> None:
    now = timezone.now()
    pending = Grant.objects.create(
        agent=place.agent,
        service_provider=place.provider,
        requested_capabilities=[READ],
        requested_envelope={},
        requested_seconds=60,
        request_digest=b"x" * 32,
        created_at=now,
        expires_at=now + timedelta(hours=1),
    )
    token = place.token()
    answer = asked(place, place.body(LOOK, token=token, proof=proof_with_private_key(place, token)))
    assert answer["error"] == "invalid_dpop_proof"
    assert BarredKey.objects.get().jkt == place.agent.jkt
    assert Agent.objects.get().status == "revoked"
    assert Grant.objects.get(pk=pending.pk).status == "withdrawn"


def test_it_answers_batches_and_introspection(place: Scene, bound: None) -> None:
    token = place.token()
    questions = {"requests": [place.body(LOOK, token=token), {"nonsense": True}]}
    credentials = base64.b64encode(f"{place.provider.pk}:{place.secret}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}"}
    with _as_verifier():
        batch = place.client.post(
            "/v1/verify/batch",
            json.dumps(questions),
            content_type="application/json",
            headers=headers,
        )
        told = [
            place.client.post(
                "/v1/introspect",
                f"token={shown}",
                content_type="application/x-www-form-urlencoded",
                headers=headers,
            )
            for shown in (token, token[:-4])
        ]
    good, bad = json.loads(batch.content)["results"]
    assert (good["valid"], bad["error"]) == (True, "invalid_request")
    assert [json.loads(each.content)["active"] for each in told] == [True, False]


def test_it_keeps_the_home(bound: None) -> None:
    now = timezone.now()
    home = Home.objects.filter(id=Home.ONLY)
    with _as_verifier():
        # Create the row if it is missing.
        Home.objects.bulk_create([Home(began_at=now)], ignore_conflicts=True)
        home.select_for_update().get()
        home.update(back_after=30)
        assert end_epoch(epoch=1, for_kind="redis", reason="moved", actor=SYSTEM, now=now)
        seen = home.get()
        with transaction.atomic():
            begin_epoch(
                seen,
                following=2,
                servers=frozenset("a"),
                began_at=now,
                reason="moved",
                actor=SYSTEM,
            )
        assert Home.objects.get().epoch == 2


def test_it_records_that_the_clock_of_its_host_is_off(bound: None) -> None:
    with _as_verifier():
        HostClock().record_wrong_clock(ClockOff(seconds_ahead=60, database_now=timezone.now()))
    assert [each.kind for each in Event.objects.all()] == [kinds.CLOCK_OFF]


def test_it_says_how_far_it_was_told_of_events(bound: None) -> None:
    with _as_verifier(), transaction.atomic():
        StreamCursor.objects.bulk_create([StreamCursor(epoch=1, shard=1)], ignore_conflicts=True)
        StreamCursor.objects.filter(epoch=1, shard=1, told__lt=7).update(told=7)
    assert StreamCursor.objects.get().told == 7


def test_it_reads_the_feed_and_writes_to_it(bound: None) -> None:
    with _as_verifier(), transaction.atomic():
        publish(subject="agent", subject_id="x", at=timezone.now())
        # It may read the feed. Whether the feed shows this open transaction does not matter here.
        assert {each.subject_id for each in state_since(0).changes} <= {"x"}
        assert StateChange.objects.get().subject_id == "x"


# --- What it is refused

FORBIDDEN = [
    *(f"{act} audit_event" for act in ("TABLE", "DELETE FROM", "TRUNCATE")),
    "SELECT data FROM audit_event",
    "UPDATE audit_event SET reason = 'x'",
    *MONTHS,
    "TABLE audit_opening",
    "INSERT INTO audit_opening (member) VALUES ('x')",
    "UPDATE audit_opening SET member = 'x'",
    "DELETE FROM audit_opening",
    "DELETE FROM audit_queueentry",
    "TRUNCATE audit_queueentry",
    "INSERT INTO audit_leaf VALUES (0)",
    "UPDATE audit_head SET size = 0",
    "DELETE FROM audit_refusalcount",
    "UPDATE registry_grant SET capabilities = '[]'",
    "UPDATE registry_grant SET valid_until = now()",
    "UPDATE registry_grant SET version = 9",
    "INSERT INTO registry_grant (id) VALUES (gen_random_uuid())",
    "DELETE FROM registry_grant",
    "UPDATE registry_token SET revoked_at = NULL",
    "INSERT INTO registry_token (id) VALUES (gen_random_uuid())",
    "DELETE FROM registry_token",
    "UPDATE registry_agent SET jkt = 'x'",
    "UPDATE registry_agent SET public_jwk = '{}'",
    "UPDATE registry_agent SET human_id = NULL",
    "DELETE FROM registry_agent",
    "DELETE FROM registry_barredkey",
    "UPDATE registry_barredkey SET jkt = 'x'",
    "UPDATE registry_human SET is_staff = true",
    "DELETE FROM registry_human",
    "UPDATE registry_installation SET fingerprint = '{}'",
    "SELECT * FROM registry_pairwisesubject",
    "UPDATE registry_serviceprovider SET audience = 'x'",
    "INSERT INTO registry_serviceprovidersecret (id) VALUES (0)",
    "UPDATE registry_serviceprovidersecret SET digest = 'x'",
    "DELETE FROM registry_spentproof",
    "UPDATE registry_spentproof SET expires_at = now()",
    "UPDATE kms_key SET state = 'active'",
    "INSERT INTO kms_key (id) VALUES (gen_random_uuid())",
    "DELETE FROM kms_key",
    "SELECT session_data FROM django_session",
    "UPDATE django_session SET expire_date = now()",
    "DELETE FROM django_session",
    "UPDATE verifier_presencelease SET expires_at = now()",
    "UPDATE verifier_agentoperation SET answer = '{}'",
    "UPDATE verifier_confirmation SET human_id = NULL",
    "UPDATE verifier_confirmation SET usable_until = now()",
    "DELETE FROM verifier_confirmation",
    "DELETE FROM verifier_grantledger",
    "DELETE FROM verifier_providercall",
    "DELETE FROM verifier_home",
    "UPDATE verifier_streamcursor SET number = 0",
    "DELETE FROM verifier_streamcursor",
    "TABLE approvals_passkey",
    "TABLE approvals_challenge",
    "ALTER TABLE registry_agent DISABLE TRIGGER ALL",
    "DROP TRIGGER registry_agent_guarded ON registry_agent",
    "CREATE TABLE anything (id integer)",
    "SET session_replication_role = replica",
    # What the column grants alone would allow.
    "UPDATE registry_agent SET status = 'active'",
    "UPDATE registry_agent SET status = 'suspended'",
    "UPDATE registry_grant SET status = 'approved'",
    "UPDATE registry_grant SET status = 'revoked'",
    "INSERT INTO verifier_confirmation (human_id) SELECT id FROM registry_human",
    "INSERT INTO verifier_streamcursor (epoch, shard, number, told) VALUES (1, 1, 5, 5)",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_AU_27_everything_else_is_denied(place: Scene, bound: None, statement: str) -> None:
    execute("SET CONSTRAINTS ALL IMMEDIATE")
    with (
        pytest.raises(Error, match=r"permission denied|must be owner"),
        transaction.atomic(),
        _as_verifier(),
    ):
        execute(statement)
