"""Of a person who was deleted, the texts of receipts may be blanked, and nothing else of a receipt ever changes."""

from typing import Any

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from audit.triggers import append_only

_SENTENCE = "append-only: rows of approvals_receipt never change"
_KEPT = ("id", "kind", "decision", "subject", "human_id", "challenge", "assertion", "created_at")
_SUBJECT = "replace(OLD.subject, '-', '')"
# Whose words are in it: the person who signed it, or whose account, agent, grant or payment it is about. What a release
# after a restore names stands inside it alone: `verify_audit` holds each blanked receipt to the event that says so.
_GONE = """
EXISTS (SELECT 1 FROM {0}registry_human h WHERE h.status = 'deleted' AND (
    h.id = OLD.human_id OR {1} = {2} OR OLD.kind = 'release'
    OR EXISTS (SELECT 1 FROM {0}registry_agent a LEFT JOIN {0}registry_grant g ON g.agent_id = a.id
               LEFT JOIN {0}verifier_confirmation c ON c.grant_id = g.id
               WHERE a.human_id = h.id AND {2} IN ({3}, {4}, {5}))))
"""


def allow(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    postgresql = editor.connection.vendor == "postgresql"
    same = " AND ".join(f"NEW.{name} = OLD.{name}" for name in _KEPT)
    blank = "NEW.compact = '' AND NEW.consent_text = '' AND NEW.passkey_name = ''"
    if not postgresql:
        gone = _GONE.format("", "h.id", _SUBJECT, "a.id", "g.id", "c.id")
        editor.execute('DROP TRIGGER "approvals_receipt_kept"')
        editor.execute(
            'CREATE TRIGGER "approvals_receipt_kept" BEFORE UPDATE ON "approvals_receipt"'
            f" WHEN NOT ({same} AND {blank} AND {gone}) BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END"
        )
        return
    ids = [f"replace({each}::text, '-', '')" for each in ("h.id", "a.id", "g.id", "c.id")]
    gone = _GONE.format("public.", ids[0], _SUBJECT, *ids[1:])
    editor.execute(
        "CREATE FUNCTION agentauth_keep_receipt() RETURNS trigger LANGUAGE plpgsql"
        " SET search_path = pg_catalog, pg_temp AS $keep$ BEGIN"
        f" IF TG_OP = 'UPDATE' THEN IF {same} AND {blank} AND {gone} THEN RETURN NEW; END IF; END IF;"
        f" RAISE EXCEPTION USING ERRCODE = '23001', MESSAGE = '{_SENTENCE}'; END $keep$",
        None,
    )
    editor.execute('DROP TRIGGER "approvals_receipt_kept" ON "approvals_receipt"')
    editor.execute(
        'CREATE TRIGGER "approvals_receipt_kept" BEFORE UPDATE OR DELETE ON "approvals_receipt"'
        " FOR EACH ROW EXECUTE FUNCTION agentauth_keep_receipt()"
    )


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
