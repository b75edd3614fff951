"""Which grants a person's signed approval covers, term for term: checked once for each version of a grant, then remembered.

The receipts belong to the approvals app, above this one; here they are read by the name of their table.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping
from datetime import datetime
from threading import Lock
from typing import Any, Final, NamedTuple

from django.conf import settings
from django.db import connection

from agentauth.protocol.capability import GRAVE_TYPES
from agentauth.protocol.encoding import canonical_json, parse_timestamp, sha256, timestamp
from agentauth.protocol.errors import EncodingError, InvalidReceiptError
from agentauth.protocol.keys import PublicKey
from agentauth.protocol.receipt import VerifiedReceipt, verify_receipt
from audit.statements import select
from kms.services import evidence_keys
from registry.models import Agent, Grant, ServiceProvider

logger = logging.getLogger(__name__)

# Grants that are remembered: some 200 bytes each, so 13 MB at the most.
BOUND: Final = 65_536
# How many receipt keys were disabled so far, as a column of the caller's own statement. Disabling is for good, so the number
# rises with each, and what was proved before it is proved anew.
DISABLED_KEYS: Final = (
    "(SELECT count(*) FROM kms_key lost WHERE lost.purpose = 'receipt' AND lost.state = 'disabled')"
)
_OF_ONE: Final = (
    "SELECT subject, compact FROM approvals_receipt"
    " WHERE kind = 'approval' AND decision = 'approve' AND subject = %s"
)
_OF_MANY: Final = _OF_ONE.replace("= %s", "= ANY(%s)")


class Terms(NamedTuple):
    """What the rows of a grant say that its receipt must say as well; `capabilities` and `envelope` as JSON."""

    grant_id: str
    version: int
    agent_id: str
    jkt: str
    human_id: str
    service_provider_id: str
    audience: str
    capabilities: str
    envelope: str
    valid_until: datetime

    def digest(self, disabled_keys: int) -> bytes:
        """Changes with any term, and with each receipt key that is disabled."""
        return sha256(repr((*self, disabled_keys)).encode())


def terms_of(
    grant: Grant,
    agent: Agent,
    service_provider: ServiceProvider,
    *,
    capabilities: str | None = None,
    envelope: str | None = None,
) -> Terms | None:
    """The terms of an approved grant; None of any other. The two texts where the caller has read them as such."""
    if grant.status != Grant.Status.APPROVED or grant.valid_until is None:
        return None
    return Terms(
        str(grant.pk),
        grant.version,
        str(agent.pk),
        agent.jkt,
        str(agent.human_id),
        str(service_provider.pk),
        service_provider.audience,
        json.dumps(grant.capabilities) if capabilities is None else capabilities,
        json.dumps(grant.envelope) if envelope is None else envelope,
        grant.valid_until,
    )


class ProvedGrants:
    """The receipt key's `kid` of each grant that was proved, by the digest of its terms. For all threads."""

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._proved: OrderedDict[bytes, str] = OrderedDict()
        # Of which the log was told.
        self._told: OrderedDict[bytes, None] = OrderedDict()
        self._lock = Lock()

    def receipt_kids(self, every: Collection[Terms], *, disabled_keys: int) -> dict[Terms, str]:
        """The `kid` of the key under the receipt that covers these terms; terms that none covers are left out.

        `disabled_keys` is what DISABLED_KEYS counted in the statement that read the rows. One query for all that are not
        remembered. Raises django.db errors: what cannot be read covers nothing.
        """
        digests = {terms: terms.digest(disabled_keys) for terms in every}
        with self._lock:
            found = {terms: kid for terms, digest in digests.items() if (kid := self._held(digest))}
        if len(found) == len(digests):
            return found
        asked = [terms for terms in digests if terms not in found]
        proved = _proved(asked)
        with self._lock:
            for terms in asked:
                if terms in proved:
                    _keep(self._proved, digests[terms], proved[terms], self._bound)
                elif digests[terms] not in self._told:
                    _keep(self._told, digests[terms], None, self._bound)
                    logger.error(
                        "Grant %s is approved, and no signed approval covers its terms: it is refused. "
                        "Run manage.py verify_audit.",
                        terms.grant_id,
                    )
        return found | proved

    def _held(self, digest: bytes) -> str | None:
        kid = self._proved.get(digest)
        if kid is not None:
            self._proved.move_to_end(digest)
        return kid


# Of this process.
PROVED: Final = ProvedGrants()


def receipt_kid(terms: Terms | None, *, disabled_keys: int) -> str | None:
    """As `ProvedGrants.receipt_kids`, of one grant; None also where there are no terms."""
    if terms is None:
        return None
    return PROVED.receipt_kids([terms], disabled_keys=disabled_keys).get(terms)


def _proved(asked: Collection[Terms]) -> dict[Terms, str]:
    keys = evidence_keys(purpose="receipt")
    receipts: dict[str, list[VerifiedReceipt]] = {}
    for subject, compact in _stored([terms.grant_id for terms in asked]):
        if receipt := _approval_of(subject, compact, keys):
            receipts.setdefault(subject, []).append(receipt)
    proved = {}
    for terms in asked:
        # By what is signed: when a receipt's row was made, its writer alone says.
        latest = max(receipts.get(terms.grant_id, ()), key=_order, default=None)
        if latest is not None and _covers(latest.statement.body, terms):
            proved[terms] = latest.kid
    return proved


def _stored(subjects: list[str]) -> list[tuple[Any, ...]]:
    if connection.vendor == "postgresql":
        return select(_OF_MANY, subjects)
    return [row for subject in subjects for row in select(_OF_ONE, subject)]


def _approval_of(grant_id: str, compact: str, keys: Mapping[str, PublicKey]) -> VerifiedReceipt | None:
    """The receipt, if it is of an approval of this grant, whatever the columns beside it say."""
    try:
        receipt = verify_receipt(compact, keys=keys, expected_issuer=settings.ISSUER)
    except InvalidReceiptError:
        return None
    body = receipt.statement.body
    is_approval = (body["kind"], body["decision"]) == ("approval", "approve")
    return receipt if is_approval and body["grant_id"] == grant_id else None


def _order(receipt: VerifiedReceipt) -> tuple[int, datetime]:
    body: Mapping[str, Any] = receipt.statement.body
    return body["grant_version"], parse_timestamp(body["issued_at"])


def _covers(body: Mapping[str, Any], terms: Terms) -> bool:
    """Whether the statement approves exactly this.

    A version may be above the signed one: each suspension raises it, and so does each new key or manifest that needs no
    new signature. A new key needs one for what moves money or deletes (`registry.services.grant_changes`).
    """
    agent, provider, capabilities = body["agent"], body["service_provider"], body["capabilities"]
    grave = any(each["type"] in GRAVE_TYPES for each in capabilities)
    return (
        body["grant_version"] <= terms.version
        and body["human_id"] == terms.human_id
        and agent["id"] == terms.agent_id
        and (agent["jkt"] == terms.jkt or not grave)
        and (provider["id"], provider["audience"]) == (terms.service_provider_id, terms.audience)
        and _is_same(capabilities, terms.capabilities)
        and _is_same(body["envelope"], terms.envelope)
        and body["valid_until"] == timestamp(terms.valid_until)
    )


def _is_same(signed: object, text: str) -> bool:
    try:
        return canonical_json(signed) == canonical_json(json.loads(text))
    except EncodingError:
        # The row holds what no statement can.
        return False


def _keep(held: OrderedDict[bytes, Any], digest: bytes, value: object, bound: int) -> None:
    if len(held) >= bound:
        held.popitem(last=False)
    held[digest] = value
