"""Bulk inserts with PostgreSQL's COPY. On SQLite, callers use Django's bulk_create."""

from collections.abc import Iterable

from django.db import connection

NULL = "\\N"


def copy_in(statement: str, lines: Iterable[str]) -> None:
    """Run `COPY table (columns) FROM STDIN`, one line per row, in the caller's transaction.

    Raises django.db errors.
    """
    # Django wraps the driver's errors for `execute`, but not for the driver's own `copy`.
    with (
        connection.cursor() as cursor,
        connection.wrap_database_errors,
        cursor.copy(statement) as copy,
    ):
        copy.write("".join(lines))


def line(*values: str) -> str:
    """One row; the values must already be in COPY's text format."""
    return "\t".join(values) + "\n"


def escape(text: str) -> str:
    """Escape a value that holds no tab or newline, as in printable text and canonical JSON."""
    return text.replace("\\", "\\\\")


def binary(data: bytes) -> str:
    """Bytes in `bytea` hex format."""
    return f"\\\\x{data.hex()}"
