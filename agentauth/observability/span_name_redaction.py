"""Names of spans for SQL statements and Redis commands. No value of either can enter a name.

Each word of a name is one that this module lists, or the name of one of our tables.
"""

import re
from functools import lru_cache
from typing import Final

from django.apps import apps

_OPERATION: Final = re.compile(
    r"\s*(?:--[^\n]*\n\s*)*"
    r"(ALTER|ANALYZE|BEGIN|CALL|CLOSE|COMMIT|COPY|CREATE|DECLARE|DELETE|DO|DROP|EXPLAIN|FETCH|GRANT"
    r"|INSERT|LISTEN|LOCK|NOTIFY|PRAGMA|RELEASE|RESET|REVOKE|ROLLBACK|SAVEPOINT|SELECT|SET|SHOW"
    r"|TRUNCATE|UNLISTEN|UPDATE|VACUUM|VALUES|WITH)\b",
    re.IGNORECASE,
)
# These match upper case only: Django and our own statements write keywords so.
_WRITE: Final = re.compile(r"\b(INSERT|UPDATE|DELETE)\b")
_TABLE: Final = re.compile(r"\b(?:FROM|INTO|UPDATE|TABLE|JOIN)\s+(?:ONLY\s+)?\"?([a-z_]+)\"?")
# What our code sends through redis-py, and what redis-py sends for itself to a server or cluster.
_COMMANDS: Final = frozenset(
    {
        "CLUSTER SLOTS",
        "COMMAND",
        "EVALSHA",
        "GET",
        "INFO",
        "PING",
        "SCRIPT LOAD",
        "SET",
        "TIME",
        "XLEN",
        "XRANGE",
        "XTRIM",
    }
)
# The name shows what a pipeline does. Its size is an attribute of the span.
_MAX_STATEMENTS: Final = 8


@lru_cache(maxsize=1024)
def statement_name(sql: str) -> tuple[str, str]:
    """Operation and first table of a statement; the table is "" unless it is one of ours."""
    operation = _OPERATION.match(sql)
    if operation and operation[1].upper() == "WITH":
        # Name a CTE after the first write in it: WITH would say nothing.
        operation = _WRITE.search(sql) or operation
    tables = (found for found in _TABLE.findall(sql) if found in _our_tables())
    return operation[1].upper() if operation else "SQL", next(tables, "")


def pipeline_name(statements: tuple[str, ...]) -> str:
    """The names of statements sent together, at most eight of them."""
    names = [" ".join(statement_name(each)).strip() for each in statements[:_MAX_STATEMENTS]]
    return "; ".join(names) + (" …" if len(statements) > _MAX_STATEMENTS else "")


def command_name(argument: object) -> str:
    """The Redis command, such as XLEN, if the registry uses it; else a constant."""
    text = argument.decode("latin-1") if isinstance(argument, bytes) else str(argument)
    return text if text in _COMMANDS else "command"


@lru_cache(maxsize=1)
def _our_tables() -> frozenset[str]:
    models = apps.get_models(include_auto_created=True)
    return frozenset(model._meta.db_table for model in models)  # noqa: SLF001 — Django's documented API
