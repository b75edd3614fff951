"""Write sealed rows as our services would, for tests that change them."""

from typing import Any, TypeVar

from django.db.models import QuerySet

from kms.row_seals import Sealed

_S = TypeVar("_S", bound=Sealed)


def change(rows: QuerySet[Any], **values: Any) -> int:
    """Like `update`, and reseal each row; returns their number."""
    found: list[Sealed] = list(rows)
    for row in found:
        for name, value in values.items():
            setattr(row, name, value)
        row.set_seal()
        row.save(update_fields=[*values, "seal"])
    return len(found)


def create(model: type[_S], **values: Any) -> _S:
    """Like `objects.create`, with the row's seal."""
    row = model(**values)
    row.set_seal()
    row.save(force_insert=True)
    return row
