"""Each receipt says by which key it is signed, so that a key's receipts are counted by index.

Receipts that are there already, and those that release 3 writes, get it by the jobs: once it is there it never changes.
"""

from importlib import import_module
from typing import Any

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from audit.db.indexes import AddIndexBesideWriters

_SENTENCE = "append-only: rows of approvals_receipt never change"
_ALL_ELSE = (
    "id", "kind", "decision", "subject", "human_id", "challenge", "assertion", "passkey_name", "consent_text", "compact",
    "created_at",
)  # fmt: skip
# All that an update does: to say by which key a receipt is signed that did not say so.
_SAYS_KEY = " AND ".join(
    ["OLD.kid IS NULL", "NEW.kid IS NOT NULL", *(f"NEW.{name} = OLD.{name}" for name in _ALL_ELSE)]
)
_CHANGES_KEY = "OLD.kid IS NOT NULL AND (NEW.kid IS NULL OR NEW.kid <> OLD.kid)"
_KEEP = "EXECUTE FUNCTION agentauth_keep_receipt()"
_POSTGRESQL = f"""
DROP TRIGGER "approvals_receipt_kept" ON "approvals_receipt";
CREATE TRIGGER "approvals_receipt_kept" BEFORE UPDATE ON "approvals_receipt" FOR EACH ROW WHEN (NOT ({_SAYS_KEY})) {_KEEP};
CREATE OR REPLACE TRIGGER "approvals_receipt_stays" BEFORE DELETE ON "approvals_receipt" FOR EACH ROW {_KEEP};
CREATE OR REPLACE TRIGGER "approvals_receipt_kid" BEFORE UPDATE ON "approvals_receipt" FOR EACH ROW WHEN ({_CHANGES_KEY})
EXECUTE FUNCTION agentauth_refuse('{_SENTENCE}')
"""
_POSTGRESQL_BEFORE = f"""
DROP TRIGGER "approvals_receipt_kid" ON "approvals_receipt";
DROP TRIGGER "approvals_receipt_stays" ON "approvals_receipt";
DROP TRIGGER "approvals_receipt_kept" ON "approvals_receipt";
CREATE TRIGGER "approvals_receipt_kept" BEFORE UPDATE OR DELETE ON "approvals_receipt" FOR EACH ROW {_KEEP}
"""
# SQLite has the whole condition in the trigger.
_SQLITE_BEFORE: str = import_module("approvals.migrations.0008_receipts_of_deleted_people")._SQLITE  # noqa: SLF001
_SQLITE = _SQLITE_BEFORE.replace(" WHEN NOT (", f" WHEN NOT ({_SAYS_KEY}) AND NOT (", 1)
_SQLITE_KID = (
    f'CREATE TRIGGER "approvals_receipt_kid" BEFORE UPDATE ON "approvals_receipt" WHEN {_CHANGES_KEY}'
    f" BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END"
)


def allow(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(_POSTGRESQL, None)
        return
    editor.execute('DROP TRIGGER "approvals_receipt_kept"')
    editor.execute(_SQLITE)
    editor.execute(_SQLITE_KID)


def forbid(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(_POSTGRESQL_BEFORE, None)
        return
    editor.execute('DROP TRIGGER "approvals_receipt_kid"')
    editor.execute('DROP TRIGGER "approvals_receipt_kept"')
    editor.execute(_SQLITE_BEFORE)


class _AddKid(migrations.AddField):
    """Again where a later part of this migration waited too long: it is not one transaction."""

    def database_forwards(
        self, app_label: str, editor: BaseDatabaseSchemaEditor, from_state: Any, to_state: Any
    ) -> None:
        if editor.connection.vendor == "postgresql":
            editor.execute(
                'ALTER TABLE "approvals_receipt" ADD COLUMN IF NOT EXISTS "kid" varchar(64) NULL'
            )
        else:
            super().database_forwards(app_label, editor, from_state, to_state)


class Migration(migrations.Migration):
    # PostgreSQL builds an index beside writers outside a transaction alone. Each part can be repeated.
    atomic = False
    dependencies = [("approvals", "0009_recoveries")]
    beside_older_code = "Triggers let a new column be filled, which older code does not name; all else is refused as before."

    operations = [
        _AddKid("receipt", "kid", models.CharField(max_length=64, null=True)),
        migrations.RunPython(allow, forbid, atomic=True),
        AddIndexBesideWriters("receipt", models.Index(fields=["kid", "kind"], name="receipt_kid")),
    ]
