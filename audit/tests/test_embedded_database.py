"""On SQLite, which has no roles and no months, what needs them says so or does nothing."""

from datetime import datetime
from types import SimpleNamespace

import pytest

from audit.db import partition_creation, partition_dropping, role_granting, role_rights
from audit.db.partition_creation import create_partitions
from audit.db.partition_dropping import DroppingError, droppable_months
from audit.db.role_granting import RoleError, grant_serving_role, grant_verifier_role
from audit.db.role_rights import beyond_verifier, may_read_log, missing_rights


@pytest.fixture(autouse=True)
def _sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that can run no statement."""
    for module in (partition_dropping, partition_creation, role_granting, role_rights):
        monkeypatch.setattr(module, "connection", SimpleNamespace(vendor="sqlite"))


def test_no_role_is_granted_anything() -> None:
    for grant in (grant_serving_role, grant_verifier_role):
        with pytest.raises(RoleError, match="Only PostgreSQL has roles"):
            grant("serving")


def test_no_right_is_missing_or_too_much() -> None:
    assert may_read_log()
    assert beyond_verifier() == []
    assert missing_rights("verifier") == ("", [])


def test_no_month_is_created_or_dropped(now: datetime) -> None:
    assert create_partitions(now=now) == []
    with pytest.raises(DroppingError, match="on SQLite nothing is dropped"):
        droppable_months(keep_months=12)
