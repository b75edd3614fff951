"""Why a suspended grant waits for a new signature: how it differs from what was last signed."""

from typing import Any

from django.utils.translation import gettext as _

from agentauth.protocol.approval_receipt import MAX_RECEIPT_BYTES
from agentauth.protocol.encoding import read_object
from agentauth.protocol.jose import parse_compact
from approvals.services.change_sentences import change_sentence
from approvals.services.offered_capabilities import LostPermission
from approvals.services.passkey_signature_flow import receipt_of
from registry.models import Grant, Human


def describe_differences(
    grant: Grant, lost: tuple[LostPermission, ...], *, viewer: Human
) -> list[str]:
    """Sentences for `viewer` on how a suspended grant differs from what was last signed.

    A manifest that was only renewed says the same as before, so it is mentioned only if it took
    something away or caused the suspension.
    """
    causes, lines = Grant.SuspensionCause, []
    agent, provider = grant.agent, grant.service_provider
    signed = _signed_statement(grant)
    if signed:
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
        lines.append(_recovery_sentence(grant, viewer))
    if grant.suspension_cause == causes.RESTORED:
        lines.append(
            _(
                "This registry was restored from a backup. What the agent did after the backup "
                "is lost here: payments made since then are not counted, and one of them may be "
                "made again."
            )
        )
    # The signed and the present values are equal: the change that suspended the grant was reverted.
    # Without a signed statement, what it was before is not known.
    reverted = {
        causes.KEY_ROTATED: _("The agent changed its key."),
        causes.AUDIENCE_CHANGED: _("The service moved to another address and back.")
        if signed
        else _("The service’s address changed."),
    }
    return lines or [reverted.get(causes(grant.suspension_cause), _("Something else changed."))]


def _recovery_sentence(grant: Grant, viewer: Human) -> str:
    owner = grant.agent.human_id
    if grant.human_id not in {None, owner}:
        return _("The account of the owner, or of the person who approved this, was recovered.")
    if viewer.pk == owner:
        return _("Your account was recovered.")
    return _("The account of the agent’s owner was recovered.")


def _signed_statement(grant: Grant) -> dict[str, Any] | None:
    """The statement of the last approval; None without a receipt, or if its text was erased.

    Does not verify the receipt's signature: the result is only shown, and the new approval is
    checked against the present rows.
    """
    receipt = receipt_of("approval", str(grant.pk))
    if receipt is None:
        return None
    jws = parse_compact(receipt.compact, max_bytes=MAX_RECEIPT_BYTES)
    statement: Any = read_object(jws.payload, max_bytes=MAX_RECEIPT_BYTES)["statement"]
    return dict(statement)
