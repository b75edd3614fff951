"""What a span may say of a statement, a command or a caller's trace: no value of any of them."""

import re
from functools import lru_cache
from typing import Final

from django.apps import apps

_OPERATION: Final = re.compile(r"\s*(?:--[^\n]*\n\s*)*([A-Za-z]+)")
_CHANGE: Final = re.compile(r"\b(INSERT|UPDATE|DELETE)\b")
_TABLE: Final = re.compile(r"\b(?:FROM|INTO|UPDATE|TABLE|JOIN)\s+(?:ONLY\s+)?\"?([a-z_]+)\"?")
_COMMAND: Final = re.compile(r"[A-Z]{2,20}(?: [A-Z]{2,20})?")
_MOST_PARTS: Final = 8
# Version 00 of https://www.w3.org/TR/trace-context/, and what a later version adds after it.
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


@lru_cache(maxsize=1024)
def statement_name(sql: str) -> tuple[str, str]:
    """Operation and first table of a statement; the table is "" unless it is one of ours.

    A literal in the text can therefore never become part of a name.
    """
    operation = _OPERATION.match(sql)
    if operation and operation[1].upper() == "WITH":
        # What it changes says more.
        operation = _CHANGE.search(sql) or operation
    named = (found for found in _TABLE.findall(sql) if found in _tables())
    return operation[1].upper() if operation else "SQL", next(named, "")


def pipeline_name(statements: tuple[str, ...]) -> str:
    """The names of statements sent together."""
    names = [" ".join(statement_name(each)).strip() for each in statements[:_MOST_PARTS]]
    return "; ".join(names) + (" …" if len(statements) > _MOST_PARTS else "")


def command_name(argument: object) -> str:
    """The name of a Redis command, such as XADD, if it looks like one."""
    text = argument.decode("latin-1") if isinstance(argument, bytes) else str(argument)
    return text if _COMMAND.fullmatch(text) else "command"


def read_traceparent(text: str) -> tuple[int, int] | None:
    """Trace id and span id of a caller's `traceparent`; None unless it is exactly one."""
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    trace, span = int(found[1], 16), int(found[2], 16)
    return (trace, span) if trace and span else None


@lru_cache(maxsize=1)
def _tables() -> frozenset[str]:
    models = apps.get_models(include_auto_created=True)
    return frozenset(model._meta.db_table for model in models)  # noqa: SLF001 — Django's documented API
