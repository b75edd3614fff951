"""A verifier process checks before it serves that its role binds it.

See `agentauth.server.verifier_application`.
"""

import pytest

from audit.db.role_rights import beyond_verifier
from audit.tests.tampering import execute
from verifier.tests.test_role import QUOTED, _as_verifier
from verifier.tests.test_role import bound as bound  # noqa: PLC0414 — a fixture

pytestmark = pytest.mark.django_db


@pytest.mark.postgres
def test_AU_27_a_bound_role_may_do_nothing_beyond(bound: None) -> None:
    with _as_verifier():
        assert beyond_verifier() == []


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("right", "table"),
    [
        ("UPDATE", "registry_human"),
        ("UPDATE (name)", "registry_human"),
        ("UPDATE (name)", "registry_agent"),
        ("UPDATE", "registry_agent"),
        ("DELETE", "verifier_grantledger"),
        ("SELECT", "approvals_passkey"),
    ],
)
def test_AU_27_what_it_was_given_by_hand_is_named(bound: None, right: str, table: str) -> None:
    execute(f"GRANT {right} ON {table} TO {QUOTED}")
    with _as_verifier():
        assert beyond_verifier() == [f"{right} on {table}"]


@pytest.mark.postgres
def test_what_a_later_release_gave_is_its_own_to_judge(bound: None) -> None:
    """The database is at a later release, with tables and columns that this code does not know."""
    execute("CREATE TABLE registry_later (id int)")
    execute("ALTER TABLE registry_grant ADD COLUMN later int")
    execute(f"GRANT SELECT, UPDATE ON registry_later TO {QUOTED}")
    execute(f"GRANT UPDATE (later) ON registry_grant TO {QUOTED}")
    with _as_verifier():
        assert len(beyond_verifier()) == 3
        assert beyond_verifier(known_alone=True) == []


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("right", "table"),
    [
        ("SELECT", "approvals_passkey"),
        ("UPDATE (name)", "registry_human"),
        ("UPDATE", "registry_agent"),
        ("DELETE", "django_migrations"),
        ("SELECT", "audit_event_early"),
    ],
)
def test_AU_27_of_what_it_knows_nothing_beyond_is_accepted(
    bound: None, right: str, table: str
) -> None:
    execute(f"GRANT {right} ON {table} TO {QUOTED}")
    with _as_verifier():
        assert beyond_verifier(known_alone=True) == [f"{right} on {table}"]


@pytest.mark.postgres
def test_AU_27_the_owner_may_do_everything_beyond() -> None:
    found = beyond_verifier()
    assert {
        "TRUNCATE on audit_leaf",
        "UPDATE on registry_human",
        "SELECT on approvals_receipt",
    } <= {*found}
    assert "SELECT on registry_human" not in found
