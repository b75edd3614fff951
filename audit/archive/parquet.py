"""The events of a segment as Parquet, for analysts: one row per event, `data` as JSON text.

Only this module imports pyarrow, and only once it is used: it is an optional package, and it starts
a thread, which a server must not have before it forks. The proof covers the lines; wherever both
files are read, the Parquet rows are compared with the lines.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import orjson

from agentauth.protocol.encoding import parse_timestamp
from agentauth.protocol.errors import InvalidStateError
from audit.optional_packages import Package

# Rows per row group: this many are in memory at a time.
ROWS: Final = 8_192
_TEXTS: Final = ("agent_id", "human_id", "service_provider_id", "grant_id", "token_jti", "reason")
_PYARROW: Final = Package("pyarrow", "pyarrow")
Row = Mapping[str, Any]


def package_error() -> str:
    """Whether pyarrow is missing, in one line that says how to install it; else empty."""
    return _PYARROW.missing("The log's archive (AUDIT_STORE)")


def check_package() -> None:
    """Raises InvalidStateError if pyarrow is missing: no segment can be written or proved."""
    if wrong := package_error():
        raise InvalidStateError(wrong)


def row_of(index: int, event: Mapping[str, Any]) -> Row:
    """The Parquet row of leaf `index` for an event's JSON object."""
    return {
        "leaf_index": index,
        "id": event["id"],
        "kind": event["kind"],
        "at": parse_timestamp(event["at"]),
        "actor_kind": event["actor"]["kind"],
        "actor_id": event["actor"]["id"],
        **{name: event.get(name) for name in _TEXTS},
        "outcome": event["outcome"],
        "request_id": event["request_id"],
        "data": orjson.dumps(event["data"], option=orjson.OPT_SORT_KEYS).decode(),
    }


class Writer:
    """Writes rows to a file, one row group at a time."""

    def __init__(self, path: Path) -> None:
        self._format = _parquet()
        self._file = self._format.files.ParquetWriter(path, self._format.schema, compression="zstd")
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(self._format.table(self._rows), row_group_size=ROWS)
            self._rows.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._file.close()
        self._format.give_back()


def same_rows(path: Path, rows: Iterable[Row]) -> Iterator[bool]:
    """For each group of ROWS rows, and once at the end: whether the file matches.

    A malformed file yields False instead of raising. Raises InvalidStateError without pyarrow.
    """
    given, wanted = iter(rows), _parquet()
    arrow = wanted.arrow
    try:
        with wanted.files.ParquetFile(path) as file:
            same = file.schema_arrow.equals(wanted.schema)
            stored = file.iter_batches(batch_size=ROWS) if same else iter(())
            while group := list(itertools.islice(given, ROWS)):
                batch = next(stored, None)
                yield batch is not None and arrow.Table.from_batches([batch]).equals(
                    wanted.table(group)
                )
            yield next(stored, None) is None
    except (arrow.ArrowException, OSError, ValueError):
        yield False
    finally:
        wanted.give_back()


class _Parquet(NamedTuple):
    """pyarrow, its module for Parquet files, and the schema of ours."""

    arrow: Any
    files: Any
    schema: Any

    def table(self, rows: list[Row]) -> Any:
        return self.arrow.Table.from_pylist(rows, schema=self.schema)

    def give_back(self) -> None:
        """Return pyarrow's memory pool to the system: it holds some 50 MB between archive runs."""
        self.arrow.default_memory_pool().release_unused()


@cache
def _parquet() -> _Parquet:
    check_package()
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            pa.field("leaf_index", pa.int64(), nullable=False),
            pa.field("id", pa.string(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
            pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("actor_kind", pa.string(), nullable=False),
            pa.field("actor_id", pa.string(), nullable=False),
            *(pa.field(name, pa.string()) for name in _TEXTS),
            pa.field("outcome", pa.string(), nullable=False),
            pa.field("request_id", pa.string(), nullable=False),
            pa.field("data", pa.string(), nullable=False),
        ]
    )
    return _Parquet(pa, pq, schema)
