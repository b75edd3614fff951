"""Statements of every call: their SQL is written once, and the rows of questions are models all the same.

Writing a statement anew takes the ORM several times as long as asking it does. What is asked seldom goes through the ORM.
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
    """Of one table of a statement: the `names` of fields of `model` that are read, with the primary key. Others are read at use."""

    model: type[models.Model]
    names: Collection[str]


def all_but(model: type[models.Model], *names: str) -> Columns:
    """All columns of `model` except these."""
    meta = model._meta  # noqa: SLF001 — Django's documented API
    return Columns(model, {field.attname for field in meta.concrete_fields} - set(names))


class Statement(NamedTuple):
    """One statement with the values of its `%s` in order, and what is made of each row."""

    sql: str
    values: Sequence[Any]
    made: Callable[[Sequence[Any]], tuple[Any, ...]] = tuple

    def answer(self) -> list[tuple[Any, ...]]:
        """Its rows, without others beside it. Raises django.db errors."""
        return run_together([self])[0]


def run_together(statements: Sequence[Statement]) -> list[list[tuple[Any, ...]]]:
    """The rows of each. PostgreSQL gets them all before it is waited for; one that fails ends those after it.

    Raises django.db errors: of the first that failed.
    """
    if not statements:
        return []
    own = connections[DEFAULT_DB_ALIAS]
    if own.vendor == "postgresql":
        answers = own.run_pipelined([(each.sql, each.values) for each in statements])  # type: ignore[attr-defined]  # our own
    else:
        answers = [_run(own, each.sql, each.values) for each in statements]
    return [[each.made(row) for row in rows] for each, (rows, _) in zip(statements, answers, strict=True)]


class _Part(NamedTuple):
    """Where the columns of one model begin and end in a row."""

    model: type[models.Model]
    names: tuple[str, ...]
    start: int
    end: int


class Question:
    """A SELECT. `{}` in `text` stands for the columns of all `parts`, each under the alias its table has there."""

    def __init__(self, text: str, **parts: Columns) -> None:
        self._text, self._columns = text, parts

    def ask(self, *values: Any) -> list[tuple[Any, ...]]:
        """The rows: a model for each part, None where an outer join has none, and whatever else is selected as it is.

        `values` are those of the `%s` in order. Raises django.db errors.
        """
        return self.of(*values).answer()

    def of(self, *values: Any) -> Statement:
        """The same, for `run_together`."""
        return Statement(self._sql, values, partial(self._made, connections[DEFAULT_DB_ALIAS]))

    def _made(self, own: Any, row: Sequence[Any]) -> tuple[Any, ...]:
        values = list(row)
        for place, convert, column in self._converters:
            values[place] = convert(values[place], column, own)
        # The first column is the primary key.
        made = [
            None
            if values[part.start] is None
            else filled(
                part.model, dict(zip(part.names, values[part.start : part.end], strict=True)), adding=False
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
        """What makes of a column's value that of the field, as the ORM does."""
        own = connections[DEFAULT_DB_ALIAS]
        every = [
            field.get_col(alias) for alias, columns in self._columns.items() for field in _fields(columns)
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
    """INSERT of many rows in one statement. `columns` maps names to types of PostgreSQL.

    `tail` is what follows the values, as ON CONFLICT; its `%s` take the `values` of `run`.
    """

    def __init__(self, table: str, tail: str = "", **columns: str) -> None:
        # In PostgreSQL's binary form, since psycopg writes arrays as text one character at a time.
        arrays = ", ".join(f"%b::{kind}[]" for kind in columns.values())
        self._start = f"INSERT INTO {table} AS held ({', '.join(columns)})"
        self._of_arrays = f"{self._start} SELECT * FROM unnest({arrays}) {tail}"  # noqa: S608 — our own text
        self._row = f"({', '.join(['%s'] * len(columns))})"
        self._tail = tail

    def run(self, rows: Sequence[Sequence[Any]], *values: Any) -> tuple[list[tuple[Any, ...]], int]:
        """What it returns, and how many rows it wrote; `rows` in the order of the columns. Raises django.db errors."""
        sql, given, _ = self.of(rows, *values)
        return _run(connections[DEFAULT_DB_ALIAS], sql, given)

    def of(self, rows: Sequence[Sequence[Any]], *values: Any) -> Statement:
        """The same, for `run_together`."""
        if connections[DEFAULT_DB_ALIAS].vendor == "postgresql":
            return Statement(self._of_arrays, [*map(list, zip(*rows, strict=True)), *values])
        sql = f"{self._start} VALUES {', '.join([self._row] * len(rows))} {self._tail}"
        return Statement(sql, [*chain.from_iterable(rows), *values])


def select(sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows of a SELECT of columns that are no model's here; `values` as for `Question.ask`. Raises django.db errors.

    A value may be a list, for `= ANY(%s)`.
    """
    return _run(connections[DEFAULT_DB_ALIAS], sql, values)[0]


def written(sql: str, *values: Any) -> int:
    """How many rows an INSERT of our own wrote; `values` as for `Question.ask`. Raises django.db errors."""
    return _run(connections[DEFAULT_DB_ALIAS], sql, values)[1]


def _run(own: Any, sql: str, values: Sequence[Any]) -> tuple[list[tuple[Any, ...]], int]:
    if own.vendor == "postgresql":
        rows: list[tuple[Any, ...]]
        rows, count = own.run_prepared(sql, values)
        return rows, count
    with own.cursor() as cursor:
        cursor.execute(*_listed(sql, _adapted(own, values)))
        return (cursor.fetchall() if cursor.description else []), cursor.rowcount


def filled(model: type[_M], values: Mapping[str, Any], *, adding: bool) -> _M:
    """As the model itself makes it of its columns, without asking each field in turn. What is not among them is read at use.

    `adding` says that it is not in the database yet; then `values` are all columns.
    """
    made = model.__new__(model)
    made._state = state = ModelState()  # noqa: SLF001 — Django's documented API
    state.adding = adding
    state.db = None if adding else DEFAULT_DB_ALIAS
    vars(made).update(values)
    return made


def _listed(sql: str, values: Sequence[Any]) -> tuple[str, list[Any]]:
    """For SQLite, which has no arrays: `= ANY(%s)` of a list as IN."""
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


def _adapted(own: Any, values: Sequence[Any]) -> list[Any]:
    """Ids and times as SQLite takes them, also in lists; other values as they are."""
    return [
        _adapted(own, value)
        if isinstance(value, list)
        else own.ops.adapt_datetimefield_value(value)
        if isinstance(value, datetime)
        else value.hex
        if isinstance(value, uuid.UUID)
        else value
        for value in values
    ]


def _fields(columns: Columns) -> "list[models.Field[Any, Any]]":
    """The primary key first, wherever the model has it."""
    meta = columns.model._meta  # noqa: SLF001 — Django's documented API
    found = [field for field in meta.concrete_fields if field.primary_key or field.attname in columns.names]
    return sorted(found, key=lambda field: not field.primary_key)
