"""PostgreSQL's COPY: the way in for many rows at once. Elsewhere rows are Django's own."""

from collections.abc import Iterable

from django.db import connection

NULL = "\\N"


def copy_in(statement: str, lines: Iterable[str]) -> None:
    """Run `COPY table (columns) FROM STDIN` with one line a row, in the caller's transaction. Raises django.db errors."""
    # Unlike `execute`, `copy` is the driver's own, and so are its errors.
    with connection.cursor() as cursor, connection.wrap_database_errors, cursor.copy(statement) as copy:
        copy.write("".join(lines))


def line(*values: str) -> str:
    """A row of texts that are already in COPY's form."""
    return "\t".join(values) + "\n"


def escaped(text: str) -> str:
    """A value that holds no tab and no new line, as printable text and canonical JSON do not."""
    return text.replace("\\", "\\\\")


def binary(data: bytes) -> str:
    """Bytes, as a `bytea` is written."""
    return f"\\\\x{data.hex()}"
