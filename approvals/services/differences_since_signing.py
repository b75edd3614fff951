"""Why a suspended grant waits for a new signature: how it differs from what was last signed."""

from typing import Any

from django.utils.translation import gettext as _

from agentauth.protocol.approval_receipt import MAX_RECEIPT_BYTES
from agentauth.protocol.encoding import read_object
from agentauth.protocol.jose import parse_compact
from approvals.services.changes_since_shown import change_sentence
from approvals.services.offered_capabilities import LostPermission
from approvals.services.passkey_signature_flow import receipt_of
from registry.models import Grant


def moved_since_signed(grant: Grant, lost: tuple[LostPermission, ...]) -> list[str]:
    """Sentences on how a suspended grant differs from what was last signed.

    A manifest that was only renewed says the same as before, so it is mentioned only if it took
    something away or caused the suspension.
    """
    causes, lines = Grant.SuspensionCause, []
    agent, provider = grant.agent, grant.service_provider
    if signed := _signed_statement(grant):
        was, at = signed["agent"], signed["service_provider"]
        pairs = [
            ("agent_key", was["jkt"], agent.jkt),
            ("agent_name", was["name"], agent.name),
            ("audience", at["audience"], provider.audience),
            ("service_name", at["name"], provider.name),
        ]
        lines += [change_sentence(name, old, new) for name, old, new in pairs if old != new]
    if grant.suspension_cause == causes.MANIFEST_CHANGED or any(each.by_manifest for each in lost):
        lines.append(change_sentence("manifest", None, None))
    if grant.suspension_cause == causes.ALLOWED_CHANGED or any(
        not each.by_manifest for each in lost
    ):
        lines.append(change_sentence("allowed", None, None))
    if grant.suspension_cause == causes.RECOVERY:
        for_other = grant.human_id not in {None, agent.human_id}
        lines.append(
            _("The account of the owner, or of the person who approved this, was recovered.")
            if for_other
            else _("Your account was recovered.")
        )
    if grant.suspension_cause == causes.RESTORED:
        lines.append(
            _(
                "This registry was restored from a backup. What the agent did after the backup "
                "is lost here: payments made since then are not counted, and one of them may be "
                "made again."
            )
        )
    # It changed and changed back: nothing differs now, but it was the cause.
    there_and_back = {
        causes.KEY_ROTATED: _("The agent changed its key."),
        causes.AUDIENCE_CHANGED: _("The service moved to another address and back."),
    }
    return lines or [
        there_and_back.get(causes(grant.suspension_cause), _("Something else changed."))
    ]


def _signed_statement(grant: Grant) -> dict[str, Any] | None:
    """The statement of the last approval; None without a receipt.

    Its seal is not checked: the row that holds it is our own.
    """
    receipt = receipt_of("approval", str(grant.pk))
    if receipt is None:
        return None
    jws = parse_compact(receipt.compact, max_bytes=MAX_RECEIPT_BYTES)
    statement: Any = read_object(jws.payload, max_bytes=MAX_RECEIPT_BYTES)["statement"]
    return dict(statement)
