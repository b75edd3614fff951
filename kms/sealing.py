"""All sealed rows at once: which of them no service of ours wrote, and the command that seals them."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, Final

from django.apps import apps
from django.conf import settings
from django.db import transaction

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

    None while `seal_rows` is outstanding.
    """
    for model in sealed_models():
        every = model.giving().order_by("pk").iterator(chunk_size=_BATCH)
        while rows := list(islice(every, _BATCH)):
            ended = _ended(rows)
            for row in rows:
                if not row.fits() or row.seal in ended:
                    yield model.table(), str(row.pk)


def seal_rows(*, adopt: bool = False, actor: Actor, now: datetime) -> Sealing:
    """Seal the rows of before the first seal, once for an installation, and have every row without a good seal refused from then on.

    Later: seal with the present SECRET_KEY what a former one of SECRET_KEY_FALLBACKS sealed. A row whose seal is not good then
    stays as it is, unless the operator says with `adopt` that it is believed as it stands. Rows and their event are one
    transaction for each batch. Raises django.db errors.
    """
    believed = adopt or SealsPending.objects.exists()
    done = Sealing()
    for model in sealed_models():
        ids = list(model.giving().order_by("pk").values_list("pk", flat=True))
        for start in range(0, len(ids), _BATCH):
            _seal_batch(model, ids[start : start + _BATCH], done, believed=believed, actor=actor, now=now)
    with transaction.atomic():
        if SealsPending.objects.all().delete()[0]:
            record(kind=kinds.SEALS_DEMANDED, actor=actor, at=now)
    return done


def _seal_batch(
    model: type[Sealed], ids: Collection[Any], done: Sealing, *, believed: bool, actor: Actor, now: datetime
) -> None:
    table = model.table()
    with transaction.atomic():
        rows = list(model.rows().select_for_update(no_key=True).filter(pk__in=ids).order_by("pk"))
        ended = _ended(rows)
        changed, adopted = [], []
        for row in rows:
            good = row.seal not in ended
            if good and row.fits(key=settings.SECRET_KEY):
                continue
            if not (good and any(row.fits(key=each) for each in settings.SECRET_KEY_FALLBACKS)):
                if not believed:
                    done.refused.setdefault(table, []).append(str(row.pk))
                    continue
                adopted.append(str(row.pk))
            row.set_seal()
            changed.append(row)
        if changed:
            model.rows().bulk_update(changed, ["seal"])
            done.sealed[table] = done.sealed.get(table, 0) + len(changed)
            data = {"table": table, "sealed": len(changed), "adopted": adopted}
            record(kind=kinds.ROWS_SEALED, actor=actor, at=now, data=data)


def _ended(rows: Sequence[Sealed]) -> set[str]:
    seals = [row.seal for row in rows if row.seal]
    return set(EndedSeal.objects.filter(seal__in=seals).values_list("seal", flat=True))
