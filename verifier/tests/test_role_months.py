"""The verifier's role records in a missing month of the log, and gets no right on the new table."""

from collections.abc import Iterator

import pytest
from django.db import connection, transaction
from django.utils import timezone

from audit import kinds
from audit.db.role_granting import grant_verifier_role
from audit.services import SYSTEM, record
from audit.tests.months import months as months  # noqa: PLC0414 — a fixture
from audit.tests.months import months_on, place_of, set_clock
from audit.tests.tampering import execute
from verifier.tests.test_role import QUOTED, ROLE, decided_rights, found_rights, rows

pytestmark = pytest.mark.postgres


@pytest.fixture
def signed_in(months: set[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All connections use the role, new ones too."""
    execute(f"CREATE ROLE {QUOTED} LOGIN")
    grant_verifier_role(ROLE)
    monkeypatch.setitem(connection.settings_dict, "USER", ROLE)
    connection.close()
    yield
    monkeypatch.undo()
    connection.close()
    execute(f"DROP OWNED BY {QUOTED}")
    execute(f"DROP ROLE {QUOTED}")


@pytest.mark.django_db(transaction=True)
def test_AU_27_verifier_role_records_in_a_month_not_yet_created(
    signed_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows("SELECT current_user::text") == [(ROLE,)]
    month = months_on(9)
    set_clock(monkeypatch, month.start)
    with transaction.atomic():
        made = record(kind=kinds.DECISION_ALLOWED, actor=SYSTEM, at=timezone.now())
    monkeypatch.undo()
    connection.close()
    assert place_of(made.pk) == month.partition
    owned = rows(
        "SELECT tableowner = %s FROM pg_tables WHERE tablename = %s", ROLE, month.partition
    )
    assert owned == [(False,)]
    assert found_rights() == decided_rights()
