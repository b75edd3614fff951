"""All sealed rows together: finds rows without a valid seal, and seals them (`seal_rows`)."""

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
from kms.row_seals import EndedSeal, Sealed, SealsPending, WiderSealsPending

# Rows locked per transaction: some tens of milliseconds.
_BATCH: Final = 500


@dataclass(slots=True)
class Sealing:
    """What `seal_rows` did, by table: how many rows it sealed, and the ids of those it refused."""

    sealed: dict[str, int] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)


def sealed_models() -> list[type[Sealed]]:
    """All models whose rows have a seal."""
    return [model for model in apps.get_models() if issubclass(model, Sealed)]


def unsealed_rows() -> Iterator[tuple[str, str]]:
    """Table and id of each row that would give a right but has no valid seal.

    Raises django.db errors. While `seal_rows` is outstanding, only rows whose seal has ended.
    """
    for model in sealed_models():
        for rows in _batches(model):
            yield from (
                (model.table(), str(row.pk)) for row in rows if row.has_ended or not row.fits()
            )


def seal_rows(*, adopt: bool = False, actor: Actor, now: datetime) -> Sealing:
    """Seal rows of releases without seals or with narrower ones, and from then on demand seals.

    Later runs renew seals made under SECRET_KEY_FALLBACKS with the current SECRET_KEY. Rows without
    a valid seal then stay as they are, unless the operator passes `adopt` to trust them as they
    stand. Each batch of rows commits together with its event, so a run that crashed is repeated.
    Raises django.db errors.
    """
    pending = SealsPending.objects, WiderSealsPending.objects
    believed, widens = adopt or pending[0].exists(), pending[1].exists()
    done = Sealing()
    for model in sealed_models():
        for rows in _batches(model):
            _seal_batch(
                model,
                [row.pk for row in rows],
                done,
                believed=believed,
                widens=widens,
                actor=actor,
                now=now,
            )
    with transaction.atomic():
        if sum(rows.all().delete()[0] for rows in pending):
            record(kind=kinds.SEALS_DEMANDED, actor=actor, at=now)
    return done


def _batches(model: type[Sealed]) -> Iterator[list[Any]]:
    """All rows that need a seal, in batches, so that no statement runs for long."""
    rows = _rows_to_judge(model)
    batch = list(rows[:_BATCH])
    while batch:
        yield batch
        batch = list(rows.filter(pk__gt=batch[-1].pk)[:_BATCH])


def _rows_to_judge(model: type[Sealed]) -> QuerySet[Any]:
    """The rows that need a seal, with their sealed fields and `has_ended`, read in one statement.

    Read later, `has_ended` would be true for a seal that was just replaced.
    """
    rows = model.giving().only(*model.SEALED, "seal").order_by("pk")
    return rows.annotate(has_ended=Exists(EndedSeal.objects.filter(seal=OuterRef("seal"))))


def _seal_batch(
    model: type[Sealed],
    ids: Collection[Any],
    done: Sealing,
    *,
    believed: bool,
    widens: bool,
    actor: Actor,
    now: datetime,
) -> None:
    table = model.table()
    with transaction.atomic():
        changed, adopted = [], []
        # Select again: a row that has ended since gets no seal.
        for row in _rows_to_judge(model).select_for_update(no_key=True).filter(pk__in=ids):
            if not row.has_ended and row.fits(key=settings.SECRET_KEY):
                continue
            is_ours = not row.has_ended and any(
                row.fits_previous_release(key=each) if widens else row.fits(key=each)
                for each in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
            )
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
    """Seal the row; False if it has values that this registry never writes and cannot seal."""
    try:
        row.set_seal()
    except EncodingError:
        return False
    return True
