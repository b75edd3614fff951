"""Find the grants whose terms a human's signed approval receipt covers exactly.

The result is cached per set of terms. The receipts belong to the approvals app, which this app must
not import, so they are read with SQL by table name.
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
from agentauth.protocol.statement_routing_member import owner_id
from audit.db.prebuilt_sql import select
from audit.db.role_rights import may_read_log
from kms.row_seals import ENDED
from kms.services import evidence_keys
from registry.models import Agent, Grant, ServiceProvider
from registry.services.grant_log_check import contradiction, histories

logger = logging.getLogger(__name__)

NO_RECEIPT: Final = "no signed approval covers its terms"
# Most grants in the cache. At about 200 bytes each, that is 13 MB.
BOUND: Final = 65_536
# SQL column for the caller's SELECT: the number of disabled receipt keys. Disabling a key is
# permanent, so it always changes the number, which invalidates every cached proof.
DISABLED_KEYS: Final = (
    "(SELECT count(*) FROM kms_key lost WHERE lost.purpose = 'receipt' AND lost.state = 'disabled')"
)
# SQL column for the caller's SELECT: whether the seal of the agent `a` has ended.
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
    # None in `jkt` or `audience`: it is not compared.
    jkt: str | None
    # Whether the agent row's seal proves that the registry itself wrote its key and its owner.
    is_agent_ours: bool
    human_id: str
    service_provider_id: str
    audience: str | None
    capabilities: str
    envelope: str
    valid_until: datetime

    def digest(self, disabled_keys: int) -> bytes:
        """The cache key. Changes with every term, and whenever a receipt key is disabled."""
        return sha256(repr((*self, disabled_keys)).encode())


def terms_of(
    grant: Grant,
    agent: Agent,
    service_provider: ServiceProvider,
    *,
    is_sealed: bool,
    capabilities: str | None = None,
    envelope: str | None = None,
    suspended: bool = False,
) -> Terms | None:
    """The terms of an approved grant; None for a grant in another state.

    `is_sealed` is the agent's, with SEAL_ENDED of the statement that read the rows. Pass
    `capabilities` and `envelope` if the caller has already read them as JSON text.

    With `suspended`, also returns the terms of a suspended grant. Its agent's key and its service
    provider's audience may have changed since it was signed, so they are not compared. For most
    causes of suspension, the grant then needs a new signature before it resumes.
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
        is_suspended or is_sealed,
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
        # Digests of refused terms that were already logged, so that each is logged once.
        self._told: OrderedDict[bytes, None] = OrderedDict()
        self._lock = Lock()

    def proofs(self, every: Collection[Terms], *, disabled_keys: int) -> dict[Terms, Proof]:
        """Return the proof of each of these terms that a receipt covers; omit the others.

        `disabled_keys` is the value of DISABLED_KEYS in the statement that read the rows. Terms
        that are not cached are checked together, against the receipts and the log. Raises django.db
        errors, so that an unreadable receipt never counts as an approval.
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
        """Whether a receipt covers these terms and the log does not contradict the grant.

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
            "Refusing approved grant %s: %s. Run `%s verify_audit` to examine it.",
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
    """Split the terms into those that stand, with their proofs, and those refused, with the reason.

    A verifier process may not read the log and judges by the receipts alone. That is enough: it
    only decides on tokens, and the process that issued them compared the grant with the log.
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
    """Verify the receipts, and return the one that covers each of these terms; omit the others.

    Verifies with `keys`, by default the evidence keys. If any receipt of a grant has lost its text,
    none covers the grant: either its human was deleted, or an attacker blanked the latest
    receipt so that an older one would count. Raises django.db errors.
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
        # Order by the signed content: whoever can write a receipt's row can choose its timestamp.
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
    """The verified receipt if it approves this grant. The row's columns are not trusted."""
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
    delete (`registry.services.dependent_grant_suspension`). For all others, the seal suffices: it
    proves that a key rotation at this registry wrote the key.

    The owner signed, or a person to whom a rule sent it: then the statement names that rule and the
    owner. The registry signs such a receipt only for a person whom sealed rows let decide on this
    very request (`approvals.services.passkey_signature_flow`, ADR 44).
    """
    agent, provider, capabilities = body["agent"], body["service_provider"], body["capabilities"]
    grave = any(each["type"] in GRAVE_TYPES for each in capabilities)
    return (
        body["grant_version"] <= terms.version
        and owner_id(body) == terms.human_id
        and agent["id"] == terms.agent_id
        and terms.is_agent_ours
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
        # The row has a value that canonical JSON cannot encode, so no receipt can contain it.
        return False


def _keep(held: OrderedDict[bytes, Any], digest: bytes, value: object, bound: int) -> None:
    if len(held) >= bound:
        held.popitem(last=False)
    held[digest] = value
