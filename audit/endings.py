"""What ended for good, as ids only, kept outside the database beside the checkpoints so that a restore does not bring it back.

Before a checkpoint is copied outside, what ended since the previous one is written under
`endings/<size, 20 digits>.json` in the log's folder: `{"version": 1, "first", "end", "endings": [[kind, id], …]}`, RFC 8785, in
the order of the log. If nothing ended there is no object. It contains no name, address or text.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from agentauth.protocol.encoding import canonical_json, read_object
from agentauth.protocol.errors import EncodingError, InvalidRequestError
from agentauth.protocol.reading import items, members, text
from audit import kinds
from audit.copies import ContradictedError
from audit.models import Event, Leaf
from audit.stores import MAX_SMALL_BYTES, Store

PREFIX: Final = "endings/"
VERSION: Final = 1
# By kind of event, where to find the id of what ended: a column of the event, or a member of its data, which may be a list.
ENDINGS: Final[Mapping[str, str]] = {
    kinds.HUMAN_DELETED: "human_id",
    kinds.HUMAN_SUSPENDED: "human_id",
    kinds.PASSKEY_REMOVED: "data.passkey_id",
    kinds.AGENT_REVOKED: "agent_id",
    kinds.AGENT_SUSPENDED: "agent_id",
    kinds.AGENT_KEY_BARRED: "data.jkt",
    kinds.AGENT_KEY_ROTATED: "data.old_jkt",
    kinds.GRANT_REVOKED: "grant_id",
    # Only by an administrator: all others wait for their person after a restore anyway.
    kinds.GRANT_SUSPENDED: "grant_id",
    kinds.SERVICE_PROVIDER_REVOKED: "service_provider_id",
    kinds.SERVICE_PROVIDER_SUSPENDED: "service_provider_id",
    kinds.SERVICE_PROVIDER_SECRET_ROTATED: "data.secrets",
    kinds.SERVICE_PROVIDER_SECRETS_ENDED: "data.secrets",
    kinds.KEY_DISABLED: "data.kid",
    kinds.KEY_CERTIFICATE_REVOKED: "data.serial",
}
# All other kinds of event, by the reason why a restore need not repeat them. A new kind belongs here or above.
NOT_REPEATED: Final[Mapping[str, frozenset[str]]] = {
    "It takes no right away.": frozenset({
        kinds.REQUEST_REFUSED, kinds.REFUSALS_SUPPRESSED, kinds.STORE_MOVED, kinds.SETTINGS_RECORDED,
        kinds.KEY_PUBLISHED, kinds.KEY_ACTIVATED, kinds.KEY_CERTIFIED,
        kinds.HUMAN_CREATED, kinds.HUMAN_RESUMED, kinds.HUMAN_CHANGED,
        kinds.SERVICE_PROVIDER_CREATED, kinds.SERVICE_PROVIDER_RESUMED,
        kinds.ENROLMENT_CODE_CREATED, kinds.SETUP_CODE_CREATED, kinds.PASSKEY_CREATED,
        kinds.AGENT_REGISTERED, kinds.AGENT_RESUMED,
        kinds.GRANT_REQUESTED, kinds.GRANT_APPROVED, kinds.GRANT_RESUMED, kinds.GRANT_RELEASED,
        kinds.TOKEN_ISSUED, kinds.DECISION_DENIED, kinds.DECISION_REPEATED, kinds.DECISION_REHEARSED,
        kinds.PRESENCE_BEGUN, kinds.HOME_LEFT, kinds.HOME_BEGAN, kinds.CLOCK_OFF,
        kinds.HISTORY_CONTINUED, kinds.HISTORY_CLOSED, kinds.BREAK_SIGNED,
        kinds.HUMAN_SIGNED_IN, kinds.HUMAN_VERIFIED, kinds.SECOND_STEP_TAKEN,
        kinds.RECOVERY_BEGUN, kinds.RECOVERY_CONFIRMED,
        kinds.RECOVERY_NOTICE_SENT, kinds.RECOVERY_NOTICE_FAILED,
    }),
    "Continuing after a restore ends all sessions, codes, links, recoveries and requests.": frozenset({
        kinds.RECOVERY_CANCELLED,
        kinds.HUMAN_SESSIONS_ENDED, kinds.HUMAN_SIGNED_OUT, kinds.PRESENCE_ENDED, kinds.ENROLMENT_CODE_FAILED,
        kinds.AGENT_CLAIMED, kinds.AGENT_CLAIM_RENEWED, kinds.AGENT_CLAIM_FAILED,
        kinds.GRANT_DENIED, kinds.GRANT_WITHDRAWN,
    }),
    "Each approved grant waits for its person, and has a version that earlier tokens and confirmations do not have.": frozenset({
        kinds.GRANT_VERSION_RAISED, kinds.TOKEN_REVOKED, kinds.DECISION_ALLOWED, kinds.DECISIONS_LOST,
        kinds.CONFIRMATION_REQUESTED, kinds.CONFIRMATION_CONFIRMED, kinds.CONFIRMATION_DENIED,
        kinds.CONFIRMATION_EXPIRED,
    }),
    "Its row says when it ends.": frozenset({kinds.AGENT_EXPIRED, kinds.AGENT_DELETED, kinds.GRANT_EXPIRED}),
    "Each passkey that it removed has an event of its own.": frozenset({kinds.HUMAN_RECOVERED}),
    "It changes terms, which each person sees again before they sign; the agent or an operator repeats the change.": frozenset({
        kinds.AGENT_MANIFEST_RENEWED, kinds.AGENT_MANIFEST_CHANGED,
        kinds.SERVICE_PROVIDER_AUDIENCE_CHANGED, kinds.SERVICE_PROVIDER_ALLOWED_CHANGED,
    }),
}  # fmt: skip
_NAME: Final = re.compile(r"[0-9]{20}(\.[0-9]+)?\.json", re.ASCII)
# The most endings in one object: a larger object would exceed MAX_SMALL_BYTES and could not be read back.
_MOST: Final = 8_000


class Ending(NamedTuple):
    """An event of this kind ended the person, agent, grant, key or other record with this id."""

    kind: str
    id: str


def ended_since(size: int) -> bool:
    """Whether anything ended after the first `size` leaves. Uses an index, so the log's length does not matter."""
    return Leaf.objects.filter(leaf_index__gte=size, kind__in=[*ENDINGS]).exists()


def copy_endings(store: Store, first: int, end: int) -> None:
    """Write what ended in leaves `first` ≤ index < `end` to the store; a repetition changes nothing.

    Raises TemporarilyUnavailableError and ImmutableError from the store.
    """
    found = [list(each) for each in _endings(first, end)]
    for start in range(0, len(found), _MOST):
        body = {"version": VERSION, "first": first, "end": end, "endings": found[start : start + _MOST]}
        store.put_once(_key(end, start // _MOST), canonical_json(body))


def read_endings(store: Store, folder: str, *, after: int) -> Iterator[Ending]:
    """What ended in the log of this folder after its first `after` leaves, and perhaps a little before that.

    Raises ContradictedError if an object is malformed, TemporarilyUnavailableError if the store does not answer.
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
                f"{key} in the store outside does not say what ended: it is malformed."
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
    # Those of dropped months are gone, and in the archive.
    for event in (events[each] for each in ids if each in events):
        for found in _ids(event):
            yield Ending(event.kind, str(found))


def _ids(event: Event) -> list[Any]:
    if event.kind == kinds.GRANT_SUSPENDED and not event.data.get("by_admin"):
        return []
    place = ENDINGS[event.kind]
    # None in events of releases that did not record it.
    found = event.data.get(place[5:]) if place.startswith("data.") else getattr(event, place)
    return found if isinstance(found, list) else [found] if found is not None else []
