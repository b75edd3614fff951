"""Of a person who was deleted, the texts of receipts may be blanked, and nothing else of a receipt ever changes."""

from typing import Any

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from audit.db.triggers import append_only

_SENTENCE = "append-only: rows of approvals_receipt never change"
_KEPT = ("id", "kind", "decision", "subject", "human_id", "challenge", "assertion", "created_at")
_BLANKED = " AND ".join(
    [*(f"NEW.{name} = OLD.{name}" for name in _KEPT)]
    + [f"NEW.{name} = ''" for name in ("compact", "consent_text", "passkey_name")]
)
# Whose words are in it: the person who signed it, or whose account, agent, grant or payment it is about. Each is found by
# primary key, since a person may have thousands of receipts and a statement ends after 2 s. What a release after a restore
# names stands inside it alone: `verify_audit` holds each blanked receipt to the event that says so.
_GONE = """
(
    EXISTS (SELECT 1 FROM {schema}registry_human h WHERE h.id = OLD.human_id AND h.status = 'deleted')
    OR EXISTS (SELECT 1 FROM {schema}registry_human h WHERE h.status = 'deleted' AND h.id = CASE OLD.kind
        WHEN 'claim' THEN ({of_agent})
        WHEN 'approval' THEN ({of_grant})
        WHEN 'confirmation' THEN ({of_confirmation})
        WHEN 'resume' THEN COALESCE(({of_agent}), ({of_grant}), {subject})
        END)
    OR OLD.kind = 'release' AND EXISTS (SELECT 1 FROM {schema}registry_human h WHERE h.status = 'deleted')
)
"""


def _gone(schema: str, subject: str) -> str:
    """The condition where tables stand in `schema`; `subject` is SQL for the receipt's subject as an id."""
    agent = f"SELECT a.human_id FROM {schema}registry_agent a"  # noqa: S608 — our own names
    grant = f"{agent} JOIN {schema}registry_grant g ON g.agent_id = a.id"
    asked = f"{grant} JOIN {schema}verifier_confirmation c ON c.grant_id = g.id"
    return _GONE.format(
        schema=schema,
        subject=subject,
        of_agent=f"{agent} WHERE a.id = {subject}",
        of_grant=f"{grant} WHERE g.id = {subject}",
        of_confirmation=f"{asked} WHERE c.id = {subject}",
    )


# SQLite keeps an id without its hyphens.
_SQLITE_GONE = _gone("", "replace(OLD.subject, '-', '')")
_SQLITE = (
    'CREATE TRIGGER "approvals_receipt_kept" BEFORE UPDATE ON "approvals_receipt"'
    f" WHEN NOT ({_BLANKED} AND {_SQLITE_GONE}) BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END"
)
_POSTGRESQL_GONE = _gone("public.", "OLD.subject::uuid")
_FUNCTION = f"""
CREATE FUNCTION agentauth_keep_receipt() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $keep$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF {_BLANKED} AND {_POSTGRESQL_GONE} THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = '23001', MESSAGE = '{_SENTENCE}';
END
$keep$
"""
_POSTGRESQL = (
    'CREATE TRIGGER "approvals_receipt_kept" BEFORE UPDATE OR DELETE ON "approvals_receipt"'
    " FOR EACH ROW EXECUTE FUNCTION agentauth_keep_receipt()"
)


def allow(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(_FUNCTION, None)
        editor.execute('DROP TRIGGER "approvals_receipt_kept" ON "approvals_receipt"')
        editor.execute(_POSTGRESQL)
    else:
        editor.execute('DROP TRIGGER "approvals_receipt_kept"')
        editor.execute(_SQLITE)


def forbid(apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    append_only("approvals_receipt", unique=("id", "challenge")).code(apps, editor)
    if editor.connection.vendor == "postgresql":
        editor.execute("DROP FUNCTION agentauth_keep_receipt()")


class Migration(migrations.Migration):
    dependencies = [
        ("approvals", "0007_resume_purpose"),
        ("registry", "0010_whose_suspension"),
        ("verifier", "0009_home_history"),
    ]
    beside_older_code = "A trigger refuses less than before; older code changes no receipt."

    operations = [migrations.RunPython(allow, forbid)]
