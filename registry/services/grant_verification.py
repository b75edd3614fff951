"""Check all grants that give something, or may again: a signed approval covers each, none ended.

For `manage.py verify_audit`, which proves the log itself and finds this by its name in settings.
"""

import uuid
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Any, Final, NamedTuple

from django.apps import apps
from django.db.models import Exists, OuterRef, Q

from agentauth.protocol.encoding import timestamp
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
from registry.services.grant_contradictions import contradiction, histories

# Grants in memory at once, with their receipts: some 5 MB.
_BATCH: Final = 500
UNTOLD: Final = "its receipt lost its text, but no event says that the person was erased"
UNWRITTEN: Final = "no service of this registry wrote its content; it grants nothing"
ALIVE: Final = "the log says that this person was erased, but the account exists"
UNKNOWN: Final = "the log says that this person was erased, but there is no such account"
_BLANKED: Final = (
    "SELECT r.id, r.kind, r.subject, r.human_id, r.kind = 'release' OR h.status = 'deleted'"
    " FROM approvals_receipt r JOIN registry_human h ON h.id = r.human_id WHERE r.compact = ''"
)
_STANDING: Final = (Grant.Status.APPROVED, Grant.Status.SUSPENDED)


class Finding(NamedTuple):
    """What is wrong with a grant, or with the row `grant_id` of `table` if that is set.

    `disabled_at`: its receipt's key was disabled then. If empty, the row was changed.
    """

    grant_id: str
    problem: str
    disabled_at: str = ""
    table: str = ""


def review(*, now: datetime) -> Iterator[Finding]:
    """Each approved or suspended grant that receipts or events contradict, and each other bad row.

    1. A receipt covers the grant's terms (`registry.services.approval_receipt_check`), by a key
       that was not disabled.
    2. The log has no end and no later suspension of an approved grant
       (`registry.services.grant_contradictions`).
    3. An event of an erasure names each receipt without its text, for the person who signed it or
       whom it is about. Else its subject is a finding.
    4. Each account that the log says was erased exists and is not in use.
    5. A service of ours wrote every other row that gives a right (`kms.row_seals`).

    Raises django.db errors.
    """
    standing = Grant.objects.filter(status__in=_STANDING).select_related(
        "agent", "service_provider"
    )
    ended = EndedSeal.objects.filter(seal=OuterRef("agent__seal"))
    rows = standing.annotate(seal_ended=Exists(ended)).order_by("id")
    disabled = disabled_keys(purpose="receipt", now=now)
    every = rows.iterator(chunk_size=_BATCH)
    while grants := list(islice(every, _BATCH)):
        terms = {grant.pk: _terms(grant) for grant in grants}
        covered = covering_receipts(list(terms.values()))
        rest = [each for each in terms.values() if each not in covered] if disabled else []
        lost = (
            covering_receipts(rest, {kid: key for kid, (key, _at) in disabled.items()})
            if rest
            else {}
        )
        said = histories([grant.pk for grant in grants if grant.status == Grant.Status.APPROVED])
        for grant in grants:
            receipt = covered.get(terms[grant.pk]) or lost.get(terms[grant.pk])
            if receipt is None:  # 1
                yield Finding(str(grant.pk), NO_RECEIPT)
            elif problem := contradiction(
                said.get(grant.pk, ()),
                version=grant.version,
                signed_version=signed_version(receipt),
            ):  # 2
                yield Finding(str(grant.pk), problem)
            elif terms[grant.pk] in lost:
                at = timestamp(disabled[receipt.kid][1])
                yield Finding(
                    str(grant.pk), f"the key that signed its receipt was disabled on {at}", at
                )
    yield from _find_blanked()  # 3
    yield from _not_erased()  # 4
    yield from (Finding(pk, UNWRITTEN, table=table) for table, pk in unsealed_rows())  # 5


def _find_blanked() -> Iterator[Finding]:
    """Subjects of receipts without their text, if no event says that their person was erased."""
    told: dict[uuid.UUID, set[uuid.UUID | None]] = {}
    erased = Event.objects.filter(kind=kinds.HUMAN_ERASED, human_id__isnull=False)
    for human_id, data in erased.values_list("human_id", "data"):
        for receipt in named_ids(data, "receipts"):
            told.setdefault(receipt, set()).add(human_id)
    # The event of an older erasure may be only in the archive.
    archived = DroppedMonth.objects.exists()
    for receipt, kind, subject, signer, gone in select(_BLANKED):
        # The event must be of the receipt's own person: a process that may add events could name
        # another person's receipt.
        people = told.get(uuid.UUID(str(receipt)), ())
        theirs = any(_is_theirs(kind, subject, uuid.UUID(str(signer)), each) for each in people)
        if not theirs and not (archived and (gone or _is_gone(kind, subject))):
            yield Finding(str(subject), UNTOLD)


def _is_theirs(kind: str, subject: str, signer: uuid.UUID, human: uuid.UUID | None) -> bool:
    """Whether a receipt without its text is this person's.

    They signed it, or by the log it is about them or something of theirs.
    """
    if kind == "release":
        released = Event.objects.filter(kind=kinds.GRANT_RELEASED, human_id=human)
        return any(data.get("log") == subject for data in released.values_list("data", flat=True))
    return signer == human or subject == str(human) or _owners(kind, subject) == {human}


def _owners(kind: str, subject: str) -> set[uuid.UUID]:
    """The owner, by the log, of the agent, grant or payment that a receipt is about.

    Two people if its events contradict each other. The rows say whose agent a grant or payment is
    only if the log has no event of it left, because a serving process can write rows.
    """
    about = _id_of(kind, subject)
    if about is None:
        return set()
    told = Q(kind=kinds.GRANT_REQUESTED, grant_id=subject)
    rows: Any = Grant.objects.filter(pk=subject).values_list("agent_id", flat=True)
    if kind == "confirmation":
        told = Q(kind=kinds.CONFIRMATION_REQUESTED, data__confirmation_id=subject)
        # A model of an app above this one.
        asked = apps.get_model("verifier", "Confirmation").objects.filter(pk=subject)
        rows = asked.values_list("grant__agent_id", flat=True)
    agents = {*Event.objects.filter(told).values_list("agent_id", flat=True)} or {*rows}
    owners = (owner_of(agent) for agent in {*agents, about} if agent)
    return {owner for owner in owners if owner is not None}


def _id_of(kind: str, subject: str) -> uuid.UUID | None:
    """The id of a receipt's subject; None for a log's name, and for what no service writes."""
    if kind in {"release", "break"}:
        return None
    try:
        return uuid.UUID(subject)
    except ValueError:
        return None


def _not_erased() -> Iterator[Finding]:
    """People whom the log says were erased, but whose account is in use or does not exist."""
    erased = Event.objects.filter(kind__in=[kinds.HUMAN_DELETED, kinds.HUMAN_ERASED]).values(
        "human_id"
    )
    alive = Human.objects.exclude(status=Human.Status.DELETED).filter(pk__in=erased)
    yield from (Finding(str(pk), ALIVE) for pk in alive.values_list("pk", flat=True))
    there = Human.objects.values("pk")
    unknown = erased.filter(human_id__isnull=False).exclude(human_id__in=there).distinct()
    yield from (Finding(str(pk), UNKNOWN) for pk in unknown.values_list("human_id", flat=True))


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
