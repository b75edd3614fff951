"""All sealed rows at once: which of them no service of ours wrote, and the command that seals them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from django.apps import apps
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet

from agentauth.protocol.errors import EncodingError
from audit import kinds
from audit.services import Actor, record
from kms.seals import EndedSeal, Sealed, SealsPending

# Rows that are locked together: some tens of milliseconds.
_BATCH: Final = 500


@dataclass(slots=True)
class Sealing:
    """What `seal_rows` did: by table, how many rows got a seal, and the ids of those that it left as they are."""

    sealed: dict[str, int] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)


def sealed_models() -> list[type[Sealed]]:
    """Every kind of row that has a seal."""
    return [model for model in apps.get_models() if issubclass(model, Sealed)]


def unsealed_rows() -> Iterator[tuple[str, str]]:
    """Table and id of each row that would give a right and that no service of ours wrote. Raises django.db errors.

    None while `seal_rows` is outstanding, except with a seal that ended.
    """
    for model in sealed_models():
        for rows in _batches(model):
            yield from ((model.table(), str(row.pk)) for row in rows if row.has_ended or not row.fits())


def seal_rows(*, adopt: bool = False, actor: Actor, now: datetime) -> Sealing:
    """Seal the rows of before the first seal, once for an installation, and have every row without a good seal refused from then on.

    Later: seal with the present SECRET_KEY what a former one of SECRET_KEY_FALLBACKS sealed. A row whose seal is not good then
    stays as it is, unless the operator says with `adopt` that it is believed as it stands. Rows and their event are one
    transaction for each batch: after a crash, run it again. Raises django.db errors.
    """
    believed = adopt or SealsPending.objects.exists()
    done = Sealing()
    for model in sealed_models():
        for rows in _batches(model):
            _seal_batch(model, [row.pk for row in rows], done, believed=believed, actor=actor, now=now)
    with transaction.atomic():
        if SealsPending.objects.all().delete()[0]:
            record(kind=kinds.SEALS_DEMANDED, actor=actor, at=now)
    return done


def _batches(model: type[Sealed]) -> Iterator[list[Any]]:
    """All rows that need a seal, by statements that each read a batch: no long statement, however many there are."""
    rows = _judged(model)
    batch = list(rows[:_BATCH])
    while batch:
        yield batch
        batch = list(rows.filter(pk__gt=batch[-1].pk)[:_BATCH])


def _judged(model: type[Sealed]) -> QuerySet[Any]:
    """The rows that need a seal, without what it does not cover, each with `has_ended` as of the same moment.

    Asked later, the seal of a row that a service changes meanwhile would have ended.
    """
    rows = model.giving().only(*model.SEALED, "seal").order_by("pk")
    return rows.annotate(has_ended=Exists(EndedSeal.objects.filter(seal=OuterRef("seal"))))


def _seal_batch(
    model: type[Sealed], ids: Collection[Any], done: Sealing, *, believed: bool, actor: Actor, now: datetime
) -> None:
    table = model.table()
    with transaction.atomic():
        changed, adopted = [], []
        # Asked again whether they need one: a row that ended since gets no seal.
        for row in _judged(model).select_for_update(no_key=True).filter(pk__in=ids):
            if not row.has_ended and row.fits(key=settings.SECRET_KEY):
                continue
            is_ours = not row.has_ended and any(row.fits(key=each) for each in settings.SECRET_KEY_FALLBACKS)
            if not (is_ours or believed) or not _set_seal(row):
                done.refused.setdefault(table, []).append(str(row.pk))
                continue
            if not is_ours:
                adopted.append(str(row.pk))
            changed.append(row)
        if changed:
            model.rows().bulk_update(changed, ["seal"])
            done.sealed[table] = done.sealed.get(table, 0) + len(changed)
            data = {"table": table, "sealed": len(changed), "adopted": adopted}
            record(kind=kinds.ROWS_SEALED, actor=actor, at=now, data=data)


def _set_seal(row: Sealed) -> bool:
    """Seal the row; False for values that no service writes, over which there is no seal."""
    try:
        row.set_seal()
    except EncodingError:
        return False
    return True
