"""A column of the cursors goes, the guard that named it stands the whole time, and no number is lost."""

import pytest
from django.db import Error, connection, transaction
from django.db.migrations.executor import MigrationExecutor

from audit.roles import grant_verifier_role
from audit.tests.tampering import execute
from verifier.models import StreamCursor

pytestmark = [pytest.mark.django_db, pytest.mark.postgres]
INSERT = "INSERT INTO verifier_streamcursor (epoch, shard, number, told) VALUES (2, 1, %s, 0)"


def _migrate(name: str) -> None:
    MigrationExecutor(connection).migrate([("verifier", name)])


def _insert_as_verifier(number: int) -> None:
    with transaction.atomic():
        execute("SET LOCAL ROLE verifier")
        execute(INSERT, number)
        execute("RESET ROLE")


def test_the_guard_stands_before_and_after_and_numbers_stay() -> None:
    execute("CREATE ROLE verifier")
    StreamCursor.objects.create(epoch=1, shard=1, number=5, told=7)
    # The rights are of the tables as they are now.
    grant_verifier_role("verifier")
    _migrate("0006_told")
    execute(
        "CREATE OR REPLACE TRIGGER verifier_streamcursor_guarded BEFORE INSERT ON verifier_streamcursor FOR EACH ROW "
        "WHEN (NEW.entry_id <> '0-0' AND NOT has_table_privilege('verifier_streamcursor', 'UPDATE')) "
        "EXECUTE FUNCTION agentauth_refuse('permission denied')"
    )
    _migrate("0007_stream_cursor_without_entry_id")
    assert StreamCursor.objects.values_list("epoch", "shard", "number", "told").get() == (1, 1, 5, 7)
    with pytest.raises(Error, match="permission denied: this role"):
        _insert_as_verifier(3)
    _insert_as_verifier(0)
    # The registry's own drainer may.
    execute("UPDATE verifier_streamcursor SET number = 4 WHERE epoch = 2")
    assert StreamCursor.objects.get(epoch=2).number == 4


def test_where_no_role_was_ever_bound_there_is_nothing_to_guard() -> None:
    _migrate("0006_told")
    execute("DROP TRIGGER IF EXISTS verifier_streamcursor_guarded ON verifier_streamcursor")
    _migrate("0007_stream_cursor_without_entry_id")
    StreamCursor.objects.create(epoch=2, shard=1, number=3)
