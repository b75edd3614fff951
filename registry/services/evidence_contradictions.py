"""Find rows that the evidence contradicts. Checks that signed receipts and the log back every
approved or suspended grant, that every other sealed row is ours, and that every erasure is sound.

`verify_audit` proves the log itself. `AUDIT_GRANTS` names `find_contradictions` for it, because
audit may not import registry.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

from django.apps import apps
from django.db.models import Exists, OuterRef, Q

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.keys import PublicKey
from audit import kinds
from audit.db.prebuilt_sql import select
from audit.log.erasure import named_ids, owner_of
from audit.models import DroppedMonth, Event
from kms.row_seals import EndedSeal
from kms.seal_backfill import unsealed_rows
from kms.services import disabled_keys
from registry.models import Grant, Human
from registry.services.approval_receipt_check import (
    NO_RECEIPT,
    Terms,
    covering_receipts,
    signed_version,
    terms_of,
)
from registry.services.grant_log_check import contradiction, histories

# Grants per batch. Their receipts take about 5 MB.
_BATCH: Final = 500
ERASURE_MISSING: Final = (
    "the receipt's text is missing, but no event says that the person was erased"
)
ROW_UNSEALED: Final = "this registry did not write its content; it grants nothing"
ERASED_BUT_PRESENT: Final = "the log says that this person was erased, but the account exists"
ERASED_BUT_MISSING: Final = "the log says that this person was erased, but there is no such account"
# An erasure whose event is archived may explain a receipt whose signer is deleted. It may explain
# any receipt of a release after a restore: only its text named whom it was about.
_BLANKED: Final = (
    "SELECT r.id, r.kind, r.subject, r.human_id,"
    " r.kind = 'release' OR h.status = 'deleted' AS is_explicable"
    " FROM approvals_receipt r JOIN registry_human h ON h.id = r.human_id WHERE r.compact = ''"
)
_STANDING: Final = (Grant.Status.APPROVED, Grant.Status.SUSPENDED)


class Finding(NamedTuple):
    """What is wrong with a grant or a person, with a receipt about `subject`, or with a row.

    `subject` is an id; `table` is set for a row only. `disabled_at`: the key of a grant's receipt
    was disabled then, which is not tampering. Empty: something was changed.
    """

    kind: Literal["grant", "person", "receipt", "row"]
    subject: str
    problem: str
    disabled_at: str = ""
    table: str = ""


def find_contradictions(*, now: datetime) -> Iterator[Finding]:
    """Each approved or suspended grant that receipts or events contradict, and each other invalid
    row.

    1. A receipt covers the grant's terms (`registry.services.approval_receipt_check`), by a key
       that was not disabled.
    2. The log has no end and no later suspension of an approved grant
       (`registry.services.grant_log_check`).
    3. An event of an erasure names each receipt without its text, for the person who signed it or
       whom it is about. Otherwise report its subject.
    4. Each account that the log says was erased exists and is not in use.
    5. This registry wrote every other row that gives a right (`kms.row_seals`).

    Raises django.db errors.
    """
    yield from _find_contradicted_grants(now)  # 1 and 2
    yield from _find_unexplained_blank_receipts()  # 3
    yield from _find_contradicted_people()  # 4
    yield from (  # 5
        Finding("row", pk, ROW_UNSEALED, table=table) for table, pk in unsealed_rows()
    )


def _find_contradicted_grants(now: datetime) -> Iterator[Finding]:
    standing = Grant.objects.filter(status__in=_STANDING).select_related(
        "agent", "service_provider"
    )
    ended = EndedSeal.objects.filter(seal=OuterRef("agent__seal"))
    rows = standing.annotate(seal_ended=Exists(ended)).order_by("id")
    disabled = disabled_keys(purpose="receipt", now=now)
    remaining = rows.iterator(chunk_size=_BATCH)
    while grants := list(islice(remaining, _BATCH)):
        yield from _check_grants(grants, disabled)


def _check_grants(
    grants: Sequence[Any], disabled: Mapping[str, tuple[PublicKey, datetime]]
) -> Iterator[Finding]:
    terms_by_grant = {grant.pk: _terms(grant) for grant in grants}
    covered = covering_receipts(list(terms_by_grant.values()))
    by_disabled_keys = {}
    if disabled:
        uncovered = [terms for terms in terms_by_grant.values() if terms not in covered]
        keys = {kid: key for kid, (key, _at) in disabled.items()}
        by_disabled_keys = covering_receipts(uncovered, keys) if uncovered else {}
    approved = [grant.pk for grant in grants if grant.status == Grant.Status.APPROVED]
    histories_by_grant = histories(approved)
    for grant in grants:
        terms, history = terms_by_grant[grant.pk], histories_by_grant.get(grant.pk, ())
        receipt = covered.get(terms) or by_disabled_keys.get(terms)
        if receipt is None:
            yield Finding("grant", str(grant.pk), NO_RECEIPT)
            continue
        signed = signed_version(receipt)
        if problem := contradiction(history, version=grant.version, signed_version=signed):
            yield Finding("grant", str(grant.pk), problem)
        elif terms in by_disabled_keys:
            at = timestamp(disabled[receipt.kid][1])
            problem = f"the key that signed its receipt was disabled on {at}"
            yield Finding("grant", str(grant.pk), problem, at)


def _find_unexplained_blank_receipts() -> Iterator[Finding]:
    """Receipts without their text, if no event says that their person was erased."""
    erased_for: dict[uuid.UUID, set[uuid.UUID | None]] = {}
    erasures = Event.objects.filter(kind=kinds.HUMAN_ERASED, human_id__isnull=False)
    for human_id, data in erasures.values_list("human_id", "data"):
        for receipt in named_ids(data, "receipts"):
            erased_for.setdefault(receipt, set()).add(human_id)
    # The event of an older erasure may be only in the archive.
    archived = DroppedMonth.objects.exists()
    for receipt, kind, subject, signer, is_explicable in select(_BLANKED):
        # The event must be of the receipt's own person: a process that may add events could name
        # another person's receipt.
        people = erased_for.get(uuid.UUID(str(receipt)), ())
        explained_by_log = any(
            _belongs_to(each, kind=kind, subject=subject, signer=uuid.UUID(str(signer)))
            for each in people
        )
        if explained_by_log or (archived and (is_explicable or _is_gone(kind, subject))):
            continue
        yield Finding("receipt", str(subject), ERASURE_MISSING)


def _belongs_to(human: uuid.UUID | None, *, kind: str, subject: str, signer: uuid.UUID) -> bool:
    """Whether this person signed the blanked receipt, or is its subject or its subject's owner."""
    if kind == "release":
        released = Event.objects.filter(kind=kinds.GRANT_RELEASED, human_id=human)
        return any(data.get("log") == subject for data in released.values_list("data", flat=True))
    return signer == human or subject == str(human) or _owners(kind, subject) == {human}


def _owners(kind: str, subject: str) -> set[uuid.UUID]:
    """The owner, by the log, of the agent, grant or payment that a receipt is about.

    Two people if its events contradict each other. Falls back to database rows only if the log has
    no event about the subject: a serving process can write rows.
    """
    about = _id_of(kind, subject)
    if about is None:
        return set()
    requested = Q(kind=kinds.GRANT_REQUESTED, grant_id=subject)
    rows: Any = Grant.objects.filter(pk=subject).values_list("agent_id", flat=True)
    if kind == "confirmation":
        requested = Q(kind=kinds.CONFIRMATION_REQUESTED, data__confirmation_id=subject)
        # Looked up by name: registry may not import verifier.
        confirmations = apps.get_model("verifier", "Confirmation").objects.filter(pk=subject)
        rows = confirmations.values_list("grant__agent_id", flat=True)
    agents = {*Event.objects.filter(requested).values_list("agent_id", flat=True)} or {*rows}
    # `about` may itself be an agent's id; `owner_of` returns None otherwise.
    owners = (owner_of(agent) for agent in {*agents, about} if agent)
    return {owner for owner in owners if owner is not None}


def _id_of(kind: str, subject: str) -> uuid.UUID | None:
    """The id of a receipt's subject; None for a log's name, and for any other text."""
    if kind in {"release", "break"}:
        return None
    try:
        return uuid.UUID(subject)
    except ValueError:
        return None


def _find_contradicted_people() -> Iterator[Finding]:
    """People who the log says were erased, but whose account is in use or does not exist."""
    erased = Event.objects.filter(kind__in=[kinds.HUMAN_DELETED, kinds.HUMAN_ERASED]).values(
        "human_id"
    )
    present = Human.objects.exclude(status=Human.Status.DELETED).filter(pk__in=erased)
    pks = present.values_list("pk", flat=True)
    yield from (Finding("person", str(pk), ERASED_BUT_PRESENT) for pk in pks)
    accounts = Human.objects.values("pk")
    missing = erased.filter(human_id__isnull=False).exclude(human_id__in=accounts).distinct()
    ids = missing.values_list("human_id", flat=True)
    yield from (Finding("person", str(pk), ERASED_BUT_MISSING) for pk in ids)


def _is_gone(kind: str, subject: str) -> bool:
    """Whether a receipt is about a deleted person, or about an agent, grant or payment of one."""
    about = _id_of(kind, subject)
    if about is None:
        return False
    people = _owners(kind, subject) or {about}
    return Human.objects.filter(pk__in=people, status=Human.Status.DELETED).count() == len(people)


def _terms(grant: Any) -> Terms:
    terms = terms_of(
        grant,
        grant.agent,
        grant.service_provider,
        is_sealed=grant.agent.is_sealed(ended=grant.seal_ended),
        suspended=True,
    )
    # The table's constraint grant_approved_is_whole guarantees it.
    assert terms is not None
    return terms
