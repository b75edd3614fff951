"""Which grants a human's signed approval covers, term for term.

Checked once for each version of a grant, then cached. The receipts belong to the approvals app,
above this one, so they are read by the name of their table.
"""

import json
import logging
import uuid
from collections import OrderedDict
from collections.abc import Collection, Mapping
from datetime import datetime
from threading import Lock
from typing import Any, Final, NamedTuple

from django.conf import settings
from django.db import connection

from agentauth.protocol.approval_receipt import VerifiedReceipt, verify_receipt
from agentauth.protocol.capability import GRAVE_TYPES
from agentauth.protocol.encoding import canonical_json, parse_timestamp, sha256, timestamp
from agentauth.protocol.errors import EncodingError, InvalidReceiptError
from agentauth.protocol.keys import PublicKey
from audit.db.prebuilt_sql import select
from audit.db.role_rights import may_read_log
from kms.row_seals import DEMAND, ENDED
from kms.services import evidence_keys
from registry.models import Agent, Grant, ServiceProvider
from registry.services.grant_contradictions import contradiction, histories

logger = logging.getLogger(__name__)

NO_RECEIPT: Final = "no signed approval covers its terms"
# Grants in the cache: some 200 bytes each, so 13 MB at most.
BOUND: Final = 65_536
# Number of receipt keys disabled so far, as a column of the caller's own statement. Disabling is
# permanent, so each one raises the number, and what was proved before is checked again.
DISABLED_KEYS: Final = (
    "(SELECT count(*) FROM kms_key lost WHERE lost.purpose = 'receipt' AND lost.state = 'disabled')"
)
# Whether the seal of the agent `a` ended, as a column of the caller's own statement.
SEAL_ENDED: Final = ENDED.format("a.seal")
_OF_ONE: Final = (
    "SELECT subject, compact FROM approvals_receipt"
    " WHERE kind = 'approval' AND decision = 'approve' AND subject = %s"
)
_OF_MANY: Final = _OF_ONE.replace("= %s", "= ANY(%s)")


class Terms(NamedTuple):
    """What a grant's rows and its receipt must both say; `capabilities` and `envelope` as JSON."""

    grant_id: str
    version: int
    agent_id: str
    # `jkt` or `audience` None: not compared.
    jkt: str | None
    # Whether a service of ours wrote the agent's key into its row, by its seal.
    is_key_ours: bool
    human_id: str
    service_provider_id: str
    audience: str | None
    capabilities: str
    envelope: str
    valid_until: datetime

    def digest(self, disabled_keys: int) -> bytes:
        """Changes with every term, and whenever a receipt key is disabled."""
        return sha256(repr((*self, disabled_keys)).encode())


def terms_of(
    grant: Grant,
    agent: Agent,
    service_provider: ServiceProvider,
    *,
    seal_ended: bool,
    capabilities: str | None = None,
    envelope: str | None = None,
    suspended: bool = False,
) -> Terms | None:
    """The terms of an approved grant; None for a grant in another state.

    `seal_ended` is what SEAL_ENDED said in the statement that read the rows. Pass `capabilities`
    and `envelope` if the caller has read them as JSON texts.

    With `suspended`, also the terms of a suspended grant. Its agent's key and its service
    provider's audience may have changed since it was signed, so they are not compared; with most
    causes the grant then waits for a new signature.
    """
    is_suspended = grant.status == Grant.Status.SUSPENDED
    if grant.valid_until is None or not (
        grant.status == Grant.Status.APPROVED or (suspended and is_suspended)
    ):
        return None
    return Terms(
        str(grant.pk),
        grant.version,
        str(agent.pk),
        None if is_suspended else agent.jkt,
        is_suspended or (agent.fits() and not (seal_ended and DEMAND.holds())),
        str(agent.human_id),
        str(service_provider.pk),
        None if is_suspended else service_provider.audience,
        json.dumps(grant.capabilities) if capabilities is None else capabilities,
        json.dumps(grant.envelope) if envelope is None else envelope,
        grant.valid_until,
    )


class Proof(NamedTuple):
    """The receipt that covers a grant: its key's `kid`, and the grant version that was signed."""

    kid: str
    signed_version: int


class GrantReceiptCache:
    """A cache of proofs by the digest of the terms. Thread-safe."""

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._proved: OrderedDict[bytes, Proof] = OrderedDict()
        # Digests of contradicted terms that were logged already.
        self._told: OrderedDict[bytes, None] = OrderedDict()
        self._lock = Lock()

    def proofs(self, every: Collection[Terms], *, disabled_keys: int) -> dict[Terms, Proof]:
        """The proof for each of these terms that a receipt covers; the others are left out.

        `disabled_keys` is what DISABLED_KEYS counted in the statement that read the rows. Terms
        that are not cached are looked up together, in receipts and log. Raises django.db errors: a
        receipt that cannot be read covers nothing.
        """
        digests = {terms: terms.digest(disabled_keys) for terms in every}
        with self._lock:
            found = {
                terms: proof for terms, digest in digests.items() if (proof := self._recall(digest))
            }
        if len(found) == len(digests):
            return found
        asked = [terms for terms in digests if terms not in found]
        proved, refused = _judge(asked)
        with self._lock:
            for terms, proof in proved.items():
                _keep(self._proved, digests[terms], proof, self._bound)
            for terms, problem in refused.items():
                self._tell(digests[terms], terms, problem)
        return found | proved

    def stands(self, terms: Terms, *, disabled_keys: int) -> bool:
        """Whether a receipt covers these terms, and the log has nothing against the grant.

        The log is read each time, since a row can be set back to terms that were proved before.
        Only for processes that may read the log. Raises django.db errors.
        """
        proof = self.proofs([terms], disabled_keys=disabled_keys).get(terms)
        if proof is None:
            return False
        grant_id = uuid.UUID(terms.grant_id)
        history = histories([grant_id]).get(grant_id, ())
        problem = contradiction(history, version=terms.version, signed_version=proof.signed_version)
        if problem is None:
            return True
        digest = terms.digest(disabled_keys)
        with self._lock:
            self._proved.pop(digest, None)
            self._tell(digest, terms, problem)
        return False

    def _recall(self, digest: bytes) -> Proof | None:
        proof = self._proved.get(digest)
        if proof is not None:
            self._proved.move_to_end(digest)
        return proof

    def _tell(self, digest: bytes, terms: Terms, problem: str) -> None:
        if digest in self._told:
            return
        _keep(self._told, digest, None, self._bound)
        logger.error(
            "Refusing approved grant %s: %s. Run `%s verify_audit`.",
            terms.grant_id,
            problem,
            settings.COMMAND,
        )


# This process's cache.
PROVED: Final = GrantReceiptCache()


def signed_version(receipt: VerifiedReceipt) -> int:
    """The grant version for which an approval's receipt was signed."""
    body: Mapping[str, Any] = receipt.statement.body
    return int(body["grant_version"])


def _judge(asked: Collection[Terms]) -> tuple[dict[Terms, Proof], dict[Terms, str]]:
    """The terms that stand, with their proof, and those that do not, with what is wrong.

    Processes that may not read the log judge by the receipts alone. They decide about tokens, and
    those were issued by processes that may read it.
    """
    covered = covering_receipts(asked)
    proved = {
        terms: Proof(receipt.kid, signed_version(receipt)) for terms, receipt in covered.items()
    }
    refused = {terms: NO_RECEIPT for terms in asked if terms not in covered}
    said = (
        histories([uuid.UUID(terms.grant_id) for terms in covered])
        if covered and may_read_log()
        else {}
    )
    for terms, proof in list(proved.items()):
        history = said.get(uuid.UUID(terms.grant_id), ())
        if problem := contradiction(
            history, version=terms.version, signed_version=proof.signed_version
        ):
            del proved[terms]
            refused[terms] = problem
    return proved, refused


def covering_receipts(
    asked: Collection[Terms], keys: Mapping[str, PublicKey] | None = None
) -> dict[Terms, VerifiedReceipt]:
    """The approval's receipt that covers each of these terms, verified now; others are left out.

    Verified by the receipt keys that count, or by `keys`. If one receipt of a grant lost its text,
    none covers the grant: its human was deleted, or an attacker wants an older receipt to count.
    Raises django.db errors.
    """
    keys = evidence_keys(purpose="receipt") if keys is None else keys
    receipts: dict[str, list[VerifiedReceipt]] = {}
    stored = _read_receipts([terms.grant_id for terms in asked])
    blanked = {subject for subject, compact in stored if not compact}
    for subject, compact in stored:
        if subject not in blanked and (receipt := _approval_of(subject, compact, keys)):
            receipts.setdefault(subject, []).append(receipt)
    proved = {}
    for terms in asked:
        # The latest by what is signed: when a receipt's row was made is only its writer's word.
        latest = max(receipts.get(terms.grant_id, ()), key=_order, default=None)
        if latest is not None and _covers(latest.statement.body, terms):
            proved[terms] = latest
    return proved


def _read_receipts(subjects: list[str]) -> list[tuple[Any, ...]]:
    if connection.vendor == "postgresql":
        return select(_OF_MANY, subjects)
    return [row for subject in subjects for row in select(_OF_ONE, subject)]


def _approval_of(
    grant_id: str, compact: str, keys: Mapping[str, PublicKey]
) -> VerifiedReceipt | None:
    """The receipt, if it is of an approval of this grant, whatever its row's other columns say."""
    try:
        receipt = verify_receipt(compact, keys=keys, expected_issuer=settings.ISSUER)
    except InvalidReceiptError:
        return None
    body = receipt.statement.body
    is_approval = (body["kind"], body["decision"]) == ("approval", "approve")
    return receipt if is_approval and body["grant_id"] == grant_id else None


def _order(receipt: VerifiedReceipt) -> tuple[int, datetime]:
    return signed_version(receipt), parse_timestamp(receipt.statement.body["issued_at"])


def _covers(body: Mapping[str, Any], terms: Terms) -> bool:
    """Whether the statement approves exactly these terms.

    The row's version may be above the signed one: each suspension raises it, and so does each new
    key or manifest that needs no new signature. A new key needs one for grants that move money or
    delete (`registry.services.grants_after_change`); for all others it is enough that a rotation of
    ours wrote it.
    """
    agent, provider, capabilities = body["agent"], body["service_provider"], body["capabilities"]
    grave = any(each["type"] in GRAVE_TYPES for each in capabilities)
    return (
        body["grant_version"] <= terms.version
        and body["human_id"] == terms.human_id
        and agent["id"] == terms.agent_id
        and terms.is_key_ours
        and (terms.jkt in {None, agent["jkt"]} or not grave)
        and provider["id"] == terms.service_provider_id
        and terms.audience in {None, provider["audience"]}
        and _is_same(capabilities, terms.capabilities)
        and _is_same(body["envelope"], terms.envelope)
        and body["valid_until"] == timestamp(terms.valid_until)
    )


def _is_same(signed: object, text: str) -> bool:
    try:
        return canonical_json(signed) == canonical_json(json.loads(text))
    except EncodingError:
        # The row holds a value that no statement can have.
        return False


def _keep(held: OrderedDict[bytes, Any], digest: bytes, value: object, bound: int) -> None:
    if len(held) >= bound:
        held.popitem(last=False)
    held[digest] = value
