"""Breaks: after a restore the log continues under another name, with its own external folder.

A restored database has lost signed events. What it writes from then on is another history, so that
gets its own name, key and folder; the lost history stays unchanged in the external store
(docs/protocol.md section 9).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings

from agentauth.protocol.encoding import b64_decode, b64_encode, canonical_json, read_object
from agentauth.protocol.errors import ChainError, EncodingError, InvalidRequestError
from agentauth.protocol.json_fields import integer, items, text
from audit.checkpoints.checkpoint_copies import MOVED, ContradictedError
from audit.log.tree_reader import root_at
from audit.models import LogBreak
from audit.stores import MAX_SMALL_BYTES, Sink, Store
from audit.stores.store_factory import store_at

PREFIX: Final = "breaks/"
VERSION: Final = 1
# The second (UTC) in which a log began, in this century.
_NAME: Final = re.compile(r"20[0-9]{12}", re.ASCII)
_FIRST: Final = re.compile(r"(checkpoints|segments)/([0-9]{20})(?:\.json)?", re.ASCII)
_TILE: Final = re.compile(
    r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([0-9]{1,3}))?", re.ASCII
)


def current_break() -> LogBreak | None:
    """The newest break, where the current log began; None if the log was never broken."""
    return LogBreak.objects.order_by("-name").first()


def known_names() -> set[str]:
    """The names of all logs that this database knows: its own, earlier ones, and lost ones."""
    names = {""}
    for row in LogBreak.objects.all():
        names |= {row.name, row.previous, *row.lost}
    return names


def origin(name: str | None = None) -> str:
    """The log's name in its notes: `<host>[:port]/v1/audit`, then `/<name>` after a break."""
    if name is None:
        row = current_break()
        name = row.name if row else ""
    return f"{urlsplit(settings.PUBLIC_URL).netloc}/v1/audit" + (f"/{name}" if name else "")


def new_name(now: datetime, *, after: str = "") -> str:
    """The name of a log that begins at `now`; later than `after` even if the clock is behind.

    Raises ContradictedError if `after` is the last possible name, which only a stranger writes.
    """
    name = max(f"{now:%Y%m%d%H%M%S}", f"{int(after or 0) + 1:014d}")
    if not _NAME.fullmatch(name):
        raise ContradictedError(
            f"The log name in {key_of_break(after)} in the external store is the last possible "
            "one, so no later log can be created. If this registry did not write it, remove it."
        )
    return name


def names_outside(store: Store) -> set[str]:
    """The names of the logs that began after a restore, from their records in the external store.

    Each name counts, whatever the record holds: an older database has no key to tell our records
    from a stranger's, and if it ignored one of ours it would begin a second history. Objects under
    other names are ignored (`strange_keys`).
    """
    return {name for key in store.keys(PREFIX) if (name := break_of(key))}


def break_of(key: str) -> str:
    """The log whose break record has this key; empty for a key that the log does not write."""
    name = key.removeprefix(PREFIX).removesuffix(".json")
    return name if _NAME.fullmatch(name) and key == key_of_break(name) else ""


def key_of_break(name: str) -> str:
    """The key of the record of the break that began the log of this name."""
    return f"{PREFIX}{name}.json"


def break_record(row: LogBreak) -> bytes:
    """The record of a break as the external store keeps it: RFC 8785, written once."""
    return canonical_json(
        {
            "version": VERSION,
            "name": row.name,
            "origin": origin(row.name),
            "previous": row.previous,
            "previous_origin": origin(row.previous),
            "size": row.size,
            "root": b64_encode(bytes(row.root)),
            "signed": row.signed,
            "archived": row.archived,
            "lost": sorted(row.lost),
        }
    )


def log_store() -> Store | None:
    """The external store as the current log sees it: its folder, and the logs it continues.

    None if AUDIT_STORE is empty.
    """
    return seen_store(settings.AUDIT_STORE) if settings.AUDIT_STORE else None


def seen_store(uri: str) -> Store:
    """The store of this URI as the current log sees it."""
    return seen_from_log(store_at(uri), list(LogBreak.objects.order_by("name")))


def seen_from_log(store: Store, breaks: Sequence[LogBreak]) -> Store:
    """`store` as the newest log of `breaks` (oldest first) sees it; unchanged if there are none."""
    if not breaks:
        return store
    layers = [_Layer(folder_of(breaks[-1].name), None, None)]
    signed = archived = 2**63
    for row in reversed(breaks):
        signed, archived = min(signed, row.signed), min(archived, row.archived)
        layers.append(_Layer(folder_of(row.previous), signed, archived))
    return _Seen(store, layers)


def folder_of(name: str) -> str:
    """The folder of the log of this name in a store; the first log is at the root."""
    return f"log-{name}/" if name else ""


@dataclass(frozen=True, slots=True)
class _Layer:
    """One log's folder, and how much of it counts for the log being read.

    Checkpoints count up to `signed`, segments and tiles up to `archived`; None is no limit.
    """

    folder: str
    signed: int | None
    archived: int | None

    def holds(self, key: str) -> bool:
        """Whether the object under this key belongs to the log being read."""
        if self.signed is None or self.archived is None:
            return True
        if found := _FIRST.fullmatch(key):
            number = int(found[2])
            return number <= self.signed if found[1] == "checkpoints" else number < self.archived
        if found := _TILE.fullmatch(key):
            level = 0 if found[1] == "entries" else int(found[1])
            number = int(found[2].replace("x", "").replace("/", ""))
            return (number * 256 + int(found[3] or 256)) << (8 * level) <= self.archived
        return False


class _Seen:
    """A store seen from one log. All logs share `objects/`, whose names are content hashes."""

    def __init__(self, store: Store, layers: list[_Layer]) -> None:
        self._store, self._layers = store, layers

    def __repr__(self) -> str:
        return f"{self._store!r}, {self._layers[0].folder}"

    def put_once(self, key: str, data: bytes | Path) -> None:
        self._store.put_once(key if _is_shared(key) else self._layers[0].folder + key, data)

    def get(self, key: str) -> bytes | None:
        places = [key] if _is_shared(key) else self._places(key)
        return next(
            (data for place in places if (data := self._store.get(place)) is not None), None
        )

    def fetch(self, key: str, into: Sink) -> bool:
        places = [key] if _is_shared(key) else self._places(key)
        return any(self._store.fetch(place, into) for place in places)

    def keys(self, prefix: str = "", after: str = "") -> Iterator[str]:
        if _is_shared(prefix):
            yield from self._store.keys(prefix, after=after)
            return
        last = ""
        for key in merge(*(self._keys_of(layer, prefix, after) for layer in self._layers)):
            if key != last:
                yield key
            last = key

    def _keys_of(self, layer: _Layer, prefix: str, after: str) -> Iterator[str]:
        begun = f"{layer.folder}{after}" if after else ""
        for key in self._store.keys(layer.folder + prefix, after=begun):
            if layer.holds(inner := key.removeprefix(layer.folder)):
                yield inner

    def _places(self, key: str) -> list[str]:
        return [layer.folder + key for layer in self._layers if layer.holds(key)]


def _is_shared(key: str) -> bool:
    return key == MOVED or key.startswith(("objects/", PREFIX))


def read_break(store: Store, name: str) -> dict[str, Any]:
    """A break record in the external store. Raises ContradictedError if missing or malformed."""
    try:
        return dict(read_object(store.get(key_of_break(name)) or b"", max_bytes=MAX_SMALL_BYTES))
    except EncodingError as error:
        raise ContradictedError(
            f"{key_of_break(name)} in the external store is malformed: it is not the record "
            "of a break."
        ) from error


def lineage(store: Store) -> list[LogBreak]:
    """The breaks that the newest log in a store builds on, oldest first, from the store's records.

    Raises ContradictedError if a record is missing or malformed.
    """
    records = {name: _parse_break(store, name) for name in names_outside(store)}
    lost = {name for row in records.values() for name in row.lost}
    name, found = max(records.keys() - lost, default=""), list[LogBreak]()
    while name:
        if name not in records or len(found) > len(records):
            raise ContradictedError(
                f"The external store has no {key_of_break(name)}, the record of a break that a "
                "later log builds on."
            )
        found.append(records[name])
        name = found[-1].previous
    return found[::-1]


def check_records(store: Store) -> None:
    """Check that this database knows every log in the external store, with the same record.

    Raises ContradictedError.
    """
    for row in LogBreak.objects.all():
        if store.get(key_of_break(row.name)) not in {None, break_record(row)}:
            raise ContradictedError(
                f"{key_of_break(row.name)} in the external store differs from the break that "
                "this database recorded."
            )
    if unknown := names_outside(store) - known_names():
        raise ContradictedError(
            f"The log {max(unknown)} was started after a restore, and this database does not know "
            "it: the database is older."
        )


def check_breaks(breaks: Iterable[LogBreak]) -> None:
    """Check each break against the tree of this database and its record in the external store.

    Raises ContradictedError; TemporarilyUnavailableError if the external store does not answer.
    """
    if settings.AUDIT_STORE:
        check_records(store_at(settings.AUDIT_STORE))
    for row in breaks:
        try:
            found = root_at(row.size)
        except ChainError:
            found = None
        if found != bytes(row.root):
            raise ContradictedError(
                f"The first {row.size} events are not the ones that the break {row.name} was "
                "recorded for: they were changed."
            )


def copy_break(store: Store) -> None:
    """Write the record of the newest break, if any, to `store` (from `log_store`)."""
    if row := current_break():
        store.put_once(key_of_break(row.name), break_record(row))


def shown_break(row: LogBreak) -> str:
    """The text that accepts exactly this break: `<name>:<size>:<root in hex>`."""
    return f"{row.name}:{row.size}:{bytes(row.root).hex()}"


def _parse_break(store: Store, name: str) -> LogBreak:
    record = read_break(store, name)
    try:
        row = LogBreak(
            name=text(record["name"], "name", maximum=14),
            previous=text(record["previous"], "previous", minimum=0, maximum=14),
            size=integer(record["size"], "size", minimum=0),
            root=b64_decode(record["root"]),
            signed=integer(record["signed"], "signed", minimum=0),
            archived=integer(record["archived"], "archived", minimum=0),
            lost=[
                text(each, "lost", maximum=14)
                for each in items(record["lost"], "lost", maximum=1000, minimum=0)
            ],
        )
    except (KeyError, InvalidRequestError, EncodingError) as error:
        raise ContradictedError(
            f"{key_of_break(name)} in the external store is malformed: it is not the record "
            "of a break."
        ) from error
    # A log's name is later than every log it lost. Without this check, a record could list all of
    # them, even itself, as lost and so hide them.
    if row.name != name or max(row.lost, default="") >= name:
        raise ContradictedError(
            f"{key_of_break(name)} in the external store is the record of another break."
        )
    return row
