"""After a migration the previous release still works (docs/upgrade.md): expand, then contract."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import connection, migrations
from django.db.migrations.exceptions import NodeNotFoundError
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import NOT_PROVIDED

from audit.db.trigger_operations import append_only
from registry.release_compatibility import RELEASE
from tests import previous_release

ROOT = Path(__file__).resolve().parent.parent
# The last migrations that only create an empty database; the rule holds for those after them.
BEFORE = {"audit": 2, "kms": 1, "registry": 2, "verifier": 1, "approvals": 2}


def after(app: str) -> list[tuple[str, Any]]:
    """The migrations of one app that the rule holds for, by name."""
    loaded = MigrationLoader(None, ignore_no_migrations=True).disk_migrations
    own = sorted(name for label, name in loaded if label == app)
    return [(name, loaded[app, name]) for name in own if int(name[:4]) > BEFORE[app]]


def flat(operations: Sequence[Operation]) -> list[Operation]:
    """With the operations inside SeparateDatabaseAndState."""
    found: list[Operation] = []
    for each in operations:
        inner = (
            each.database_operations
            if isinstance(each, migrations.SeparateDatabaseAndState)
            else [each]
        )
        found += flat(inner) if inner != [each] else inner
    return found


def is_plain(operation: Operation, made: set[str]) -> bool:
    """Whether the previous release cannot notice: new tables, and columns it may omit in an INSERT.

    `made`: models created by the same migration. A default in Python only does not count, since
    older code does not know it.
    """
    if isinstance(operation, migrations.CreateModel | AddIndexConcurrently):
        return True
    if getattr(operation, "model_name", "").lower() in made:
        return True
    if getattr(operation, "table", "").partition("_")[2] in made:
        # A trigger of ours (audit/db/trigger_operations.py).
        return True
    if isinstance(operation, migrations.AddField):
        return bool(operation.field.null or operation.field.db_default is not NOT_PROVIDED)
    return False


def doubtful(migration: Any) -> list[str]:
    """Its operations that are not plainly harmless."""
    operations = flat(migration.operations)
    made = {each.name.lower() for each in operations if isinstance(each, migrations.CreateModel)}
    return [each.describe() for each in operations if not is_plain(each, made)]


@pytest.mark.parametrize("app", BEFORE)
def test_a_change_older_code_can_notice_says_why_it_is_safe(app: str) -> None:
    for name, migration in after(app):
        if found := doubtful(migration):
            told = getattr(migration, "beside_older_code", "")
            assert len(told.split()) >= 5, (
                f"{app} {name} needs `beside_older_code`, since it does: {found}"
            )


def made_by(*operations: Operation) -> list[str]:
    example = migrations.Migration("0009_example", "registry")
    setattr(example, "operations", list(operations))  # noqa: B010 — of this one, not of its class
    return doubtful(example)


def test_what_breaks_older_code_is_doubtful() -> None:
    from django.db import models

    text = models.CharField(max_length=8, default="")
    assert made_by(migrations.AddField("agent", "colour", text))
    assert made_by(migrations.RemoveField("agent", "name"))
    assert made_by(migrations.RenameField("agent", "name", "title"))
    assert made_by(migrations.DeleteModel("Agent"))
    assert made_by(migrations.AlterField("agent", "name", text))
    assert made_by(migrations.AddIndex("agent", models.Index(fields=["name"], name="agent_name")))
    assert made_by(migrations.RunSQL("LOCK TABLE audit_event"))
    assert made_by(
        migrations.SeparateDatabaseAndState([migrations.RunSQL("DROP TABLE audit_event")], [])
    )


def test_what_it_cannot_notice_is_plain() -> None:
    from django.db import models

    assert not made_by(
        migrations.AddField("agent", "colour", models.CharField(max_length=8, db_default=""))
    )
    assert not made_by(
        migrations.AddField("agent", "colour", models.CharField(max_length=8, null=True))
    )
    table = migrations.CreateModel("Colour", [("id", models.BigAutoField(primary_key=True))])
    assert not made_by(
        table, migrations.AddIndex("colour", models.Index(fields=["id"], name="colour_id"))
    )
    assert not made_by(table, append_only("registry_colour"))
    assert made_by(append_only("registry_colour"))


def test_every_app_of_ours_is_held_to_it() -> None:
    ours = {each.label for each in apps.get_app_configs() if Path(each.path).parent == ROOT}
    with_tables = {label for label in ours if (ROOT / label / "migrations").is_dir()}
    assert with_tables == set(BEFORE)


def path(app: str, name: str) -> str:
    return f"{app}/migrations/{name}.py"


@pytest.mark.history
def test_new_migrations_raise_the_release_by_one() -> None:
    were = {each for each in previous_release.files() if "/migrations/0" in each}
    loaded = MigrationLoader(None).disk_migrations
    ours = {key: migration for key, migration in loaded.items() if key[0] in BEFORE}
    squashed = {each for migration in ours.values() for each in migration.replaces}
    added = {path(*key) for key, migration in ours.items() if not migration.replaces} - were
    assert were
    assert were <= {path(*key) for key in (*ours, *squashed)}, "a landed migration is gone"
    found = re.search(
        r"^RELEASE: Final = (\d+)$",
        previous_release.file("registry/release_compatibility.py"),
        re.MULTILINE,
    )
    before = int(found[1]) if found else 1
    assert before + (1 if added else 0) <= RELEASE <= before + 1


# The last migrations of release 4. A database from before it lacks the first of these.
OF_RELEASE_4 = [
    ("registry", "0017_release_4"),
    ("registry", "0016_grant_asked"),
    ("registry", "0015_expired_suspended"),
    ("registry", "0014_seals"),
    ("verifier", "0011_operations_by_grant_and_key"),
    ("verifier", "0010_guards_by_table"),
    ("approvals", "0011_seals"),
    ("approvals", "0010_receipt_kid"),
    ("kms", "0005_seals"),
    ("audit", "0011_openings_of_new_events"),
]


@pytest.mark.django_db
@pytest.mark.parametrize("missing", [OF_RELEASE_4[:1], OF_RELEASE_4], ids=["last", "all"])
def test_migrate_refuses_a_database_from_before_release_4(missing: list[tuple[str, str]]) -> None:
    """Django leaves out a squashed migration of which a part is applied, unless another needs it
    by the name of a replaced one.
    """
    for app, name in missing:
        MigrationRecorder(connection).record_unapplied(app, name)
    with pytest.raises(NodeNotFoundError, match="replaced migrations are already applied"):
        MigrationLoader(connection)
