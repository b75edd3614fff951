"""Of a person who was deleted, the texts of receipts may be blanked, and nothing else of a receipt ever changes."""

from typing import Any

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from audit.triggers import append_only

_SENTENCE = "append-only: rows of approvals_receipt never change"
_KEPT = ("id", "kind", "decision", "subject", "human_id", "challenge", "assertion", "created_at")
_BLANKED = " AND ".join(
    [*(f"NEW.{name} = OLD.{name}" for name in _KEPT)]
    + [f"NEW.{name} = ''" for name in ("compact", "consent_text", "passkey_name")]
)
# Whose words are in it: the person who signed it, or whose account, agent, grant or payment it is about. What a release
# after a restore names stands inside it alone: `verify_audit` holds each blanked receipt to the event that says so.
_GONE = """
EXISTS (SELECT 1 FROM {schema}registry_human h WHERE h.status = 'deleted' AND (
    h.id = OLD.human_id OR {human} = {subject} OR OLD.kind = 'release'
    OR EXISTS (SELECT 1 FROM {schema}registry_agent a LEFT JOIN {schema}registry_grant g ON g.agent_id = a.id
               LEFT JOIN {schema}verifier_confirmation c ON c.grant_id = g.id
               WHERE a.human_id = h.id AND {subject} IN ({agent}, {grant}, {asked}))))
"""
_PLACES = {"human": "h.id", "agent": "a.id", "grant": "g.id", "asked": "c.id"}
# SQLite keeps an id without its hyphens.
_SQLITE_GONE = _GONE.format(schema="", subject="replace(OLD.subject, '-', '')", **_PLACES)
_SQLITE = (
    'CREATE TRIGGER "approvals_receipt_kept" BEFORE UPDATE ON "approvals_receipt"'
    f" WHEN NOT ({_BLANKED} AND {_SQLITE_GONE}) BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END"
)
_POSTGRESQL_GONE = _GONE.format(
    schema="public.", subject="OLD.subject", **{name: f"{place}::text" for name, place in _PLACES.items()}
)
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
