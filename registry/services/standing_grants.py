"""Looks through all grants that give something, or may again: each is covered by its signed approval, and nothing ended it.

For `manage.py verify_audit`, which proves the log itself and asks for this by the name in the settings.
"""

import uuid
from collections.abc import Iterator
from itertools import islice
from typing import Final

from audit import kinds
from audit.models import DroppedMonth, Event
from audit.statements import select
from registry.models import Grant
from registry.services.grant_history import contradiction, histories
from registry.services.proved_grants import NO_RECEIPT, Terms, covering_receipts, signed_version, terms_of

# Grants and their receipts in memory at once: some 5 MB.
_BATCH: Final = 500
UNTOLD: Final = "its receipt lost its text, and no event says that the person was erased"
_BLANKED: Final = "SELECT id, subject FROM approvals_receipt WHERE compact = ''"
_STANDING: Final = (Grant.Status.APPROVED, Grant.Status.SUSPENDED)


def review() -> Iterator[tuple[str, str]]:
    """The id of each grant, or of what else was signed for, that its receipts or its events contradict, with what is wrong.

    1. A receipt covers its terms (`registry.services.proved_grants`). 2. Of an approved one, the log has no later suspension
    and no end (`registry.services.grant_history`). 3. Each receipt without its text is named by the event of an erasure.
    Raises django.db errors.
    """
    rows = (
        Grant.objects.filter(status__in=_STANDING).select_related("agent", "service_provider").order_by("id")
    )
    every = rows.iterator(chunk_size=_BATCH)
    while grants := list(islice(every, _BATCH)):
        terms = {grant.pk: _terms(grant) for grant in grants}
        covered = covering_receipts(list(terms.values()))
        said = histories([grant.pk for grant in grants if grant.status == Grant.Status.APPROVED])
        for grant in grants:
            receipt = covered.get(terms[grant.pk])
            if receipt is None:  # 1
                yield str(grant.pk), NO_RECEIPT
            elif problem := contradiction(
                said.get(grant.pk, ()), signed_version=signed_version(receipt)
            ):  # 2
                yield str(grant.pk), problem
    yield from _blanked()  # 3


def _blanked() -> Iterator[tuple[str, str]]:
    """What receipts without their text are about, where no event says that their person was erased."""
    erased = Event.objects.filter(kind=kinds.HUMAN_ERASED).values_list("data", flat=True)
    told = {receipt for data in erased for receipt in data["receipts"]}
    # The event of an older erasure may be in the archive alone; the database blanks none of a person who was not deleted.
    archived = DroppedMonth.objects.exists()
    for receipt, subject in select(_BLANKED):
        if str(uuid.UUID(str(receipt))) not in told and not archived:
            yield str(subject), UNTOLD


def _terms(grant: Grant) -> Terms:
    terms = terms_of(grant, grant.agent, grant.service_provider, suspended=True)
    # A constraint of the table.
    assert terms is not None
    return terms
