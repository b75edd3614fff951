"""Rows written into the database without a service, as with a stolen password."""

from typing import Any

from kms.row_seals import Sealed


def write(row: Sealed, **values: Any) -> None:
    """One UPDATE of these columns, with the serving role's rights."""
    row.rows().filter(pk=row.pk).update(**values)


def inserted(row: Sealed, **values: Any) -> None:
    """A copy with another id and these values, seal included: an INSERT alone."""
    fields = {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}
    del fields[row._meta.pk.attname]
    row.rows().create(**fields | values)


def write_sealed(row: Sealed, **values: Any) -> None:
    """The same with a new seal, as a service does after a change that it checked."""
    write(row, **values)
    row.refresh_from_db()
    row.set_seal()
    write(row, seal=row.seal)
