"""Endings (what was revoked, suspended or deleted) in the external store; no restore undoes them.

Before a checkpoint is copied, what ended since the previous one is written in the log's folder
under `endings/<size, 20 digits>.json`, as RFC 8785, in log order:

    {"version": 1, "first", "end", "endings": [[kind, id], …]}

If nothing ended there is no object. It contains ids only: no name, address or text.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from agentauth.protocol.encoding import canonical_json, read_object
from agentauth.protocol.errors import EncodingError, InvalidRequestError
from agentauth.protocol.json_fields import items, members, text
from audit import kinds
from audit.checkpoints.checkpoint_copies import ContradictedError
from audit.models import Event, Leaf
from audit.stores import MAX_SMALL_BYTES, Store

PREFIX: Final = "endings/"
VERSION: Final = 1
# By kind of event, where the id of what ended is: a column of the event, or a member of its data,
# which may be a list.
ENDINGS: Final[Mapping[str, str]] = {
    kinds.HUMAN_DELETED: "human_id",
    kinds.HUMAN_SUSPENDED: "human_id",
    kinds.HUMAN_ROLE_CHANGED: "human_id",
    kinds.PASSKEY_REMOVED: "data.passkey_id",
    kinds.AGENT_REVOKED: "agent_id",
    kinds.AGENT_SUSPENDED: "agent_id",
    kinds.AGENT_KEY_BARRED: "data.jkt",
    kinds.AGENT_KEY_ROTATED: "data.old_jkt",
    kinds.GRANT_REVOKED: "grant_id",
    # Only if an administrator suspended it: after a restore, all other grants wait for their
    # person.
    kinds.GRANT_SUSPENDED: "grant_id",
    kinds.APPROVER_REMOVED: "data.member_id",
    kinds.ABSENCE_ENDED: "data.absence_id",
    kinds.SERVICE_PROVIDER_REVOKED: "service_provider_id",
    kinds.SERVICE_PROVIDER_SUSPENDED: "service_provider_id",
    kinds.SERVICE_PROVIDER_SECRET_ROTATED: "data.secrets",
    kinds.SERVICE_PROVIDER_SECRETS_ENDED: "data.secrets",
    kinds.KEY_DISABLED: "data.kid",
    kinds.KEY_CERTIFICATE_REVOKED: "data.serial",
}
_NAME: Final = re.compile(r"[0-9]{20}(\.[0-9]+)?\.json", re.ASCII)
# The most endings in one object: a larger object would exceed MAX_SMALL_BYTES and could not be read
# back.
_MOST: Final = 8_000


class Ending(NamedTuple):
    """An event of this kind ended the person, agent, grant, key or other record with this id."""

    kind: str
    id: str


def ended_since(size: int) -> bool:
    """Whether anything ended after the first `size` leaves; fast for any size, by index."""
    return Leaf.objects.filter(leaf_index__gte=size, kind__in=[*ENDINGS]).exists()


def copy_endings(store: Store, first: int, end: int) -> None:
    """Write what ended in leaves `first` ≤ index < `end` to the store; safe to repeat.

    Raises TemporarilyUnavailableError and ImmutableError from the store.
    """
    found = [list(each) for each in _endings(first, end)]
    for start in range(0, len(found), _MOST):
        body = {
            "version": VERSION,
            "first": first,
            "end": end,
            "endings": found[start : start + _MOST],
        }
        store.put_once(_key(end, start // _MOST), canonical_json(body))


def read_endings(store: Store, folder: str, *, after: int) -> Iterator[Ending]:
    """What ended in this folder's log after its first `after` leaves, perhaps a little earlier.

    Raises ContradictedError if an object is malformed, TemporarilyUnavailableError if the store
    does not answer.
    """
    prefix = folder + PREFIX
    for key in store.keys(prefix, after=prefix + f"{after:020d}.json"):
        if not is_ending(key.removeprefix(folder)):
            # An object that the log did not write must not keep an operator from continuing.
            continue
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
            raise ContradictedError(
                f"{key} in the external store does not say what ended: it is malformed."
            ) from error


def is_ending(key: str) -> bool:
    """Whether the log writes under this key, given without the log's folder."""
    return _NAME.fullmatch(key.removeprefix(PREFIX)) is not None


def _key(size: int, part: int) -> str:
    return f"{PREFIX}{size:020d}" + (f".{part}" if part else "") + ".json"


def _endings(first: int, end: int) -> Iterator[Ending]:
    leaves = Leaf.objects.filter(leaf_index__gte=first, leaf_index__lt=end, kind__in=[*ENDINGS])
    ids = list(leaves.order_by("leaf_index").values_list("event_id", flat=True))
    events = Event.objects.in_bulk(ids)
    # Events of dropped months are only in the archive.
    for event in (events[each] for each in ids if each in events):
        for found in _ids(event):
            yield Ending(event.kind, str(found))


def _ids(event: Event) -> list[Any]:
    if event.kind == kinds.GRANT_SUSPENDED and not event.data.get("by_admin"):
        return []
    place = ENDINGS[event.kind]
    # Absent in events of releases that did not record it.
    found = event.data.get(place[5:]) if place.startswith("data.") else getattr(event, place)
    return found if isinstance(found, list) else [found] if found is not None else []
