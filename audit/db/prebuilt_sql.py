"""Prebuilt SQL for the statements of every request; the rows of a SELECT still become models.

The ORM takes several times as long to build a statement as to run it. Rare queries use the ORM.
"""

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from django.db import DEFAULT_DB_ALIAS, connections, models
from django.db.models.base import ModelState

_M = TypeVar("_M", bound=models.Model)


class Columns(NamedTuple):
    """The fields of `model` to select: `names` and the primary key. Others load on first access."""

    model: type[models.Model]
    names: Collection[str]


def all_but(model: type[models.Model], *names: str) -> Columns:
    """All columns of `model` except these."""
    meta = model._meta  # noqa: SLF001 — Django's documented API
    return Columns(model, {field.attname for field in meta.concrete_fields} - set(names))


class Statement(NamedTuple):
    """A statement, the values of its `%s` in order, and the function that converts each row."""

    sql: str
    values: Sequence[Any]
    made: Callable[[Sequence[Any]], tuple[Any, ...]] = tuple

    def answer(self) -> list[tuple[Any, ...]]:
        """Run this statement alone and return its rows. Raises django.db errors."""
        return run_together([self])[0]


def run_together(statements: Sequence[Statement]) -> list[list[tuple[Any, ...]]]:
    """Run the statements and return the rows of each. PostgreSQL gets them pipelined.

    Stops at the first failure and raises its django.db error.
    """
    if not statements:
        return []
    own = connections[DEFAULT_DB_ALIAS]
    if own.vendor == "postgresql":
        answers = own.run_pipelined([(each.sql, each.values) for each in statements])  # type: ignore[attr-defined]  # our own
    else:
        answers = [_run(own, each.sql, each.values) for each in statements]
    return [
        [each.made(row) for row in rows]
        for each, (rows, _) in zip(statements, answers, strict=True)
    ]


class _Part(NamedTuple):
    """Where the columns of one model begin and end in a row."""

    model: type[models.Model]
    names: tuple[str, ...]
    start: int
    end: int


class SelectQuery:
    """A SELECT. `{}` in `text` is replaced by the columns of all `parts`, keyed by table alias."""

    def __init__(self, text: str, **parts: Columns) -> None:
        self._text, self._columns = text, parts

    def ask(self, *values: Any) -> list[tuple[Any, ...]]:
        """The rows: a model for each part (None if an outer join found none), then other columns.

        `values` are those of the `%s` in order. Raises django.db errors.
        """
        return self.of(*values).answer()

    def of(self, *values: Any) -> Statement:
        """The same, for `run_together`."""
        return Statement(
            self._sql, values, partial(self._convert_row, connections[DEFAULT_DB_ALIAS])
        )

    def _convert_row(self, own: Any, row: Sequence[Any]) -> tuple[Any, ...]:
        values = list(row)
        for place, convert, column in self._converters:
            values[place] = convert(values[place], column, own)
        # The first column is the primary key.
        made = [
            None
            if values[part.start] is None
            else fill_model(
                part.model,
                dict(zip(part.names, values[part.start : part.end], strict=True)),
                adding=False,
            )
            for part in self._parts
        ]
        return (*made, *values[self._parts[-1].end :])

    @cached_property
    def _parts(self) -> list[_Part]:
        parts, end = [], 0
        for columns in self._columns.values():
            names = tuple(field.attname for field in _fields(columns))
            start, end = end, end + len(names)
            parts.append(_Part(columns.model, names, start, end))
        return parts

    @cached_property
    def _sql(self) -> str:
        quote = connections[DEFAULT_DB_ALIAS].ops.quote_name
        return self._text.format(
            ", ".join(
                f"{alias}.{quote(str(field.column))}"
                for alias, columns in self._columns.items()
                for field in _fields(columns)
            )
        )

    @cached_property
    def _converters(self) -> list[tuple[int, Any, Any]]:
        """The converters from database values to field values, as the ORM uses them."""
        own = connections[DEFAULT_DB_ALIAS]
        every = [
            field.get_col(alias)
            for alias, columns in self._columns.items()
            for field in _fields(columns)
        ]
        return [
            (place, convert, column)
            for place, column in enumerate(every)
            for convert in (
                *own.ops.get_db_converters(column),
                *column.get_db_converters(own),
            )
        ]


class Insert:
    """INSERT of many rows in one statement. `columns` maps names to PostgreSQL types.

    `tail` follows the values, for example ON CONFLICT; its `%s` take the `values` of `run`.
    """

    def __init__(self, table: str, tail: str = "", **columns: str) -> None:
        # Binary format, since psycopg writes text arrays one character at a time.
        arrays = ", ".join(f"%b::{kind}[]" for kind in columns.values())
        self._start = f"INSERT INTO {table} AS held ({', '.join(columns)})"
        self._of_arrays = f"{self._start} SELECT * FROM unnest({arrays}) {tail}"  # noqa: S608 — our own text
        self._row = f"({', '.join(['%s'] * len(columns))})"
        self._tail = tail

    def run(self, rows: Sequence[Sequence[Any]], *values: Any) -> tuple[list[tuple[Any, ...]], int]:
        """Run it: the returned rows and how many were written. Raises django.db errors.

        Each of `rows` is in the order of the columns.
        """
        sql, given, _ = self.of(rows, *values)
        return _run(connections[DEFAULT_DB_ALIAS], sql, given)

    def of(self, rows: Sequence[Sequence[Any]], *values: Any) -> Statement:
        """The same, for `run_together`."""
        if connections[DEFAULT_DB_ALIAS].vendor == "postgresql":
            return Statement(self._of_arrays, [*map(list, zip(*rows, strict=True)), *values])
        sql = f"{self._start} VALUES {', '.join([self._row] * len(rows))} {self._tail}"
        return Statement(sql, [*chain.from_iterable(rows), *values])


def select(sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows of a SELECT, without models. Raises django.db errors.

    `values` as for `SelectQuery.ask`; a value may be a list, for `= ANY(%s)`.
    """
    return _run(connections[DEFAULT_DB_ALIAS], sql, values)[0]


def execute(sql: str, *values: Any) -> int:
    """Run an INSERT; returns how many rows it wrote. `values` as for `SelectQuery.ask`.

    Raises django.db errors.
    """
    return _run(connections[DEFAULT_DB_ALIAS], sql, values)[1]


def _run(own: Any, sql: str, values: Sequence[Any]) -> tuple[list[tuple[Any, ...]], int]:
    if own.vendor == "postgresql":
        rows: list[tuple[Any, ...]]
        rows, count = own.run_prepared(sql, values)
        return rows, count
    with own.cursor() as cursor:
        cursor.execute(*_expand_lists(sql, _adapt_values(own, values)))
        return (cursor.fetchall() if cursor.description else []), cursor.rowcount


def fill_model(model: type[_M], values: Mapping[str, Any], *, adding: bool) -> _M:
    """Build a model instance from its columns, faster than its constructor.

    Columns that are not in `values` load on first access. `adding` says that the row is not in the
    database yet; then `values` must hold all columns.
    """
    made = model.__new__(model)
    made._state = state = ModelState()  # noqa: SLF001 — Django's documented API
    state.adding = adding
    state.db = None if adding else DEFAULT_DB_ALIAS
    vars(made).update(values)
    return made


def _expand_lists(sql: str, values: Sequence[Any]) -> tuple[str, list[Any]]:
    """For SQLite, which has no arrays: rewrite `= ANY(%s)` with a list as IN."""
    parts = sql.split("%s")
    text, flat = parts[0], []
    for value, part in zip(values, parts[1:], strict=True):
        if isinstance(value, list):
            text = text.removesuffix("= ANY(") + f"IN ({', '.join(['%s'] * len(value))}"
            flat += value
        else:
            text += "%s"
            flat.append(value)
        text += part
    return text, flat


def _adapt_values(own: Any, values: Sequence[Any]) -> list[Any]:
    """Convert ids and times for SQLite, also in lists; other values are unchanged."""
    return [
        _adapt_values(own, value)
        if isinstance(value, list)
        else own.ops.adapt_datetimefield_value(value)
        if isinstance(value, datetime)
        else value.hex
        if isinstance(value, uuid.UUID)
        else value
        for value in values
    ]


def _fields(columns: Columns) -> "list[models.Field[Any, Any]]":
    """The selected fields, primary key first."""
    meta = columns.model._meta  # noqa: SLF001 — Django's documented API
    found = [
        field
        for field in meta.concrete_fields
        if field.primary_key or field.attname in columns.names
    ]
    return sorted(found, key=lambda field: not field.primary_key)
