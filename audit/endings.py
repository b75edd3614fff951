"""What ended for good, as ids alone, kept outside the database beside the checkpoints: a restore must not bring it back.

Each checkpoint that is copied outside has what ended since the one before copied first, under
`endings/<size, 20 digits>.json` in the log's folder: `{"version": 1, "first", "end", "endings": [[kind, id], …]}`, RFC 8785, in
the order of the log. Where nothing ended there is no object. No name, address or text is in it.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from agentauth.protocol.encoding import canonical_json, read_object
from agentauth.protocol.errors import EncodingError, InvalidRequestError
from agentauth.protocol.reading import items, members, text
from audit import kinds
from audit.copies import ContradictedError
from audit.models import Event, Leaf
from audit.stores import MAX_SMALL_BYTES, Store

PREFIX: Final = "endings/"
VERSION: Final = 1
# By the kind of event, where the id of what ended stands: a column of the event, or a member of its data.
ENDINGS: Final[Mapping[str, str]] = {
    kinds.HUMAN_DELETED: "human_id",
    kinds.HUMAN_SUSPENDED: "human_id",
    kinds.PASSKEY_REMOVED: "data.passkey_id",
    kinds.AGENT_REVOKED: "agent_id",
    kinds.AGENT_SUSPENDED: "agent_id",
    kinds.GRANT_REVOKED: "grant_id",
    kinds.SERVICE_PROVIDER_REVOKED: "service_provider_id",
    kinds.SERVICE_PROVIDER_SUSPENDED: "service_provider_id",
    kinds.KEY_DISABLED: "data.kid",
}
# So many in one object at most: a larger one could not be read back in one piece.
_MOST: Final = 8_000


class Ending(NamedTuple):
    """An event of this kind said that what has this id ended."""

    kind: str
    id: str


def ended_since(size: int) -> bool:
    """Whether anything ended after the first `size` leaves. By an index, whatever the log's length."""
    return Leaf.objects.filter(leaf_index__gte=size, kind__in=[*ENDINGS]).exists()


def copy_endings(store: Store, first: int, end: int) -> None:
    """Keep outside what ended in leaves `first` ≤ index < `end`; again changes nothing.

    Raises TemporarilyUnavailableError and ImmutableError as the store does.
    """
    found = [list(each) for each in _endings(first, end)]
    for start in range(0, len(found), _MOST):
        body = {"version": VERSION, "first": first, "end": end, "endings": found[start : start + _MOST]}
        store.put_once(_key(end, start // _MOST), canonical_json(body))


def read_endings(store: Store, folder: str, *, after: int) -> Iterator[Ending]:
    """What ended in the log of this folder after its first `after` leaves, and perhaps a little before.

    Raises ContradictedError where something else stands there, TemporarilyUnavailableError where the store does not answer.
    """
    prefix = folder + PREFIX
    for key in store.keys(prefix, after=prefix + f"{after:020d}.json"):
        try:
            body = members(
                read_object(store.get(key) or b"", max_bytes=MAX_SMALL_BYTES),
                key,
                required=("version", "first", "end", "endings"),
            )
            for each in items(body["endings"], "endings", maximum=_MOST):
                kind, ended = items(each, "ending", maximum=2)
                yield Ending(text(kind, "kind", maximum=64), text(ended, "id", maximum=64))
        except (EncodingError, InvalidRequestError, ValueError) as error:
            raise ContradictedError(f"{key} outside does not say what ended.") from error


def _key(size: int, part: int) -> str:
    return f"{PREFIX}{size:020d}" + (f".{part}" if part else "") + ".json"


def _endings(first: int, end: int) -> Iterator[Ending]:
    leaves = Leaf.objects.filter(leaf_index__gte=first, leaf_index__lt=end, kind__in=[*ENDINGS])
    ids = list(leaves.order_by("leaf_index").values_list("event_id", flat=True))
    events = Event.objects.in_bulk(ids)
    for each in ids:
        event = events[each]
        place = ENDINGS[event.kind]
        found = event.data.get(place[5:]) if place.startswith("data.") else getattr(event, place)
        if found is not None:
            yield Ending(event.kind, str(found))
