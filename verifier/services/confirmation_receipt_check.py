"""Checks that a human signed a confirmation: reads its receipt when the yes is used.

A row alone gives no right, since anyone who can write to the database could forge it. The receipts
belong to the approvals app, which is above this one, so they are read by their table's name.
"""

import hmac
import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings

from agentauth.protocol.approval_receipt import verify_receipt
from agentauth.protocol.capability import parse_action
from agentauth.protocol.encoding import parse_timestamp
from agentauth.protocol.errors import InvalidReceiptError
from agentauth.protocol.keys import PublicKey
from agentauth.protocol.statement_routing_member import owner_id
from audit.db.prebuilt_sql import select
from kms.services import evidence_keys
from registry.models import Grant
from verifier.models import Confirmation

logger = logging.getLogger(__name__)

# Longest time from a statement to its signature: the life of a challenge in the approvals app.
_SIGNED_WITHIN: Final = timedelta(minutes=5)
_RECEIPTS: Final = (
    "SELECT compact FROM approvals_receipt"
    " WHERE kind = 'confirmation' AND decision = 'confirm' AND subject = %s"
)


def is_signed(row: Confirmation, grant: Grant, *, usable: timedelta, now: datetime) -> bool:
    """Whether a yes to exactly this was signed within `usable` + _SIGNED_WITHIN.

    By the grant's owner, or by a person who decides for them. Costs one query and two signature
    checks. Raises django.db errors.
    """
    keys = evidence_keys(purpose="receipt")
    if any(
        _says(compact, row, grant, keys, since=now - usable - _SIGNED_WITHIN)
        for (compact,) in select(_RECEIPTS, str(row.pk))
    ):
        return True
    logger.error(
        "Refusing confirmation %s: its row says confirmed, but there is no signature. Run `%s "
        "verify_audit`.",
        row.pk,
        settings.COMMAND,
    )
    return False


def _says(
    compact: str, row: Confirmation, grant: Grant, keys: Mapping[str, PublicKey], *, since: datetime
) -> bool:
    try:
        receipt = verify_receipt(compact, keys=keys, expected_issuer=settings.ISSUER)
    except InvalidReceiptError:
        return False
    body = receipt.statement.body
    return (
        (body["kind"], body["decision"]) == ("confirmation", "confirm")
        and body["confirmation_id"] == str(row.pk)
        and owner_id(body) == str(grant.agent.human_id)
        and (body["grant_id"], body["grant_version"]) == (str(grant.pk), grant.version)
        and body["idempotency_key"] == row.idempotency_key
        and hmac.compare_digest(parse_action(body["action"]).digest(), bytes(row.action_digest))
        and parse_timestamp(body["issued_at"]) > since
    )
