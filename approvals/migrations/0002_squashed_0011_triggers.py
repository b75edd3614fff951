"""Triggers: a receipt changes in two ways only, and a seal that has ended never counts again.

1. The texts of a receipt may be blanked once a person whom they are about is deleted.
2. A receipt that does not name its key may get the key's id.
"""

from typing import Any

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from audit.db.trigger_operations import append_only, keep_ended

_SEALED = ("passkey", "setupcode", "recovery")
_SENTENCE = "append-only: rows of approvals_receipt never change"
_FIXED = ("id", "kind", "decision", "subject", "human_id", "challenge", "assertion", "created_at")
_TEXTS = ("compact", "consent_text", "passkey_name")
_ALL_BUT_KID = (*_FIXED[:-1], *reversed(_TEXTS), _FIXED[-1])


def _all(*conditions: str) -> str:
    return " AND ".join(conditions)


_BLANKS_TEXTS = _all(
    *(f"NEW.{name} = OLD.{name}" for name in _FIXED), *(f"NEW.{name} = ''" for name in _TEXTS)
)
# Receipts of release 3 have no `kid`. The jobs read it out of the receipt and add it.
_NAMES_KEY = _all(
    "OLD.kid IS NULL",
    "NEW.kid IS NOT NULL",
    *(f"NEW.{name} = OLD.{name}" for name in _ALL_BUT_KID),
)
_CHANGES_KEY = "OLD.kid IS NOT NULL AND (NEW.kid IS NULL OR NEW.kid <> OLD.kid)"
# The person who signed it, or whose account, agent, grant or payment it is about, is deleted. Each
# is found by primary key, because a person may have thousands of receipts and a statement ends
# after 2 s. Only the text of a release after a restore names whom it is about: `verify_audit`
# compares each blanked receipt with the event that says so.
_PERSON_IS_DELETED = """
(
    EXISTS (
        SELECT 1 FROM {schema}registry_human h WHERE h.id = OLD.human_id AND h.status = 'deleted')
    OR EXISTS (
        SELECT 1 FROM {schema}registry_human h WHERE h.status = 'deleted' AND h.id = CASE OLD.kind
        WHEN 'claim' THEN ({of_agent})
        WHEN 'approval' THEN ({of_grant})
        WHEN 'confirmation' THEN ({of_confirmation})
        WHEN 'resume' THEN COALESCE(({of_agent}), ({of_grant}), {subject})
        END)
    OR OLD.kind = 'release' AND EXISTS (
        SELECT 1 FROM {schema}registry_human h WHERE h.status = 'deleted')
)
"""


def _person_is_deleted(*, schema: str, subject: str) -> str:
    """`schema` stands before each table; `subject` is SQL for the receipt's subject as an id."""
    agent = f"SELECT a.human_id FROM {schema}registry_agent a"  # noqa: S608 — our own names
    grant = f"{agent} JOIN {schema}registry_grant g ON g.agent_id = a.id"
    confirmation = f"{grant} JOIN {schema}verifier_confirmation c ON c.grant_id = g.id"
    return _PERSON_IS_DELETED.format(
        schema=schema,
        subject=subject,
        of_agent=f"{agent} WHERE a.id = {subject}",
        of_grant=f"{grant} WHERE g.id = {subject}",
        of_confirmation=f"{confirmation} WHERE c.id = {subject}",
    )


# PostgreSQL allows no subquery in the condition of a trigger, so the function has it. The schema is
# named, or a temporary table could stand in for one of ours.
_POSTGRESQL_DELETED = _person_is_deleted(schema="public.", subject="OLD.subject::uuid")
_POSTGRESQL = f"""
CREATE FUNCTION agentauth_keep_receipt() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $keep$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF {_BLANKS_TEXTS} AND {_POSTGRESQL_DELETED} THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = '23001', MESSAGE = '{_SENTENCE}';
END
$keep$;
DROP TRIGGER approvals_receipt_kept ON approvals_receipt;
CREATE TRIGGER approvals_receipt_kept BEFORE UPDATE ON approvals_receipt FOR EACH ROW
WHEN (NOT ({_NAMES_KEY})) EXECUTE FUNCTION agentauth_keep_receipt();
CREATE TRIGGER approvals_receipt_stays BEFORE DELETE ON approvals_receipt FOR EACH ROW
EXECUTE FUNCTION agentauth_keep_receipt();
CREATE TRIGGER approvals_receipt_kid BEFORE UPDATE ON approvals_receipt FOR EACH ROW
WHEN ({_CHANGES_KEY}) EXECUTE FUNCTION agentauth_refuse('{_SENTENCE}')
"""
_POSTGRESQL_UNDONE = """
DROP TRIGGER approvals_receipt_kid ON approvals_receipt;
DROP TRIGGER approvals_receipt_stays ON approvals_receipt;
DROP TRIGGER approvals_receipt_kept ON approvals_receipt;
DROP FUNCTION agentauth_keep_receipt()
"""
# SQLite stores an id without hyphens.
_SQLITE_DELETED = _person_is_deleted(schema="", subject="replace(OLD.subject, '-', '')")
_SQLITE_KEPT = (
    'CREATE TRIGGER "approvals_receipt_kept" BEFORE UPDATE ON "approvals_receipt"'
    f" WHEN NOT ({_NAMES_KEY}) AND NOT ({_BLANKS_TEXTS} AND {_SQLITE_DELETED})"
    f" BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END"
)
_SQLITE_KID = (
    'CREATE TRIGGER "approvals_receipt_kid" BEFORE UPDATE ON "approvals_receipt"'
    f" WHEN {_CHANGES_KEY} BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END"
)


def allow_two_changes(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    """Replace the trigger of `append_only` against UPDATE (on PostgreSQL, also DELETE)."""
    if editor.connection.vendor == "postgresql":
        editor.execute(_POSTGRESQL, None)
    else:
        editor.execute('DROP TRIGGER "approvals_receipt_kept"')
        editor.execute(_SQLITE_KEPT)
        editor.execute(_SQLITE_KID)


def forbid_all_changes(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    """Drop what `allow_two_changes` created."""
    if editor.connection.vendor == "postgresql":
        editor.execute(_POSTGRESQL_UNDONE, None)
    else:
        editor.execute('DROP TRIGGER "approvals_receipt_kid"')


class Migration(migrations.Migration):
    replaces = [
        ("approvals", "0002_receipts_stay"),
        ("approvals", "0003_recovery"),
        ("approvals", "0004_break_purpose"),
        ("approvals", "0005_release_purpose"),
        ("approvals", "0006_passkey_backup_eligible"),
        ("approvals", "0007_resume_purpose"),
        ("approvals", "0008_receipts_of_deleted_people"),
        ("approvals", "0009_recoveries"),
        ("approvals", "0010_receipt_kid"),
        ("approvals", "0011_seals"),
    ]
    dependencies = [
        ("approvals", "0001_tables"),
        # By its former name, so that `migrate` refuses a database from before release 4
        # (docs/upgrade.md).
        ("verifier", "0011_operations_by_grant_and_key"),
    ]

    operations = [
        append_only("approvals_receipt", unique=("id", "challenge")),
        migrations.RunPython(allow_two_changes, forbid_all_changes),
        *(keep_ended(f"approvals_{name}", "seal", into="kms_endedseal") for name in _SEALED),
    ]
