"""What the log says against a grant that a row calls approved: that it ended, or was suspended and not brought back."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from audit import kinds
from audit.models import Event

_ENDED: Final = frozenset(
    [kinds.GRANT_DENIED, kinds.GRANT_WITHDRAWN, kinds.GRANT_REVOKED, kinds.GRANT_EXPIRED]
)
_BACK: Final = frozenset([kinds.GRANT_RESUMED, kinds.GRANT_RELEASED])
_ASKED: Final = _ENDED | _BACK | {kinds.GRANT_SUSPENDED}
# Kind and data of each event, in the order of time.
History = Sequence[tuple[str, Mapping[str, Any]]]


def histories(grant_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID | None, History]:
    """The events by which these grants ended, were suspended or came back, by grant. One query; raises django.db errors.

    Those whose month was dropped from the database are not among them. The role of the verifier's own processes may not ask.
    """
    events = Event.objects.filter(grant_id__in=grant_ids, kind__in=_ASKED).order_by("id")
    found: dict[uuid.UUID | None, list[tuple[str, Mapping[str, Any]]]] = {}
    for grant_id, kind, data in events.values_list("grant_id", "kind", "data"):
        found.setdefault(grant_id, []).append((kind, data))
    return dict(found)


def contradiction(history: History, *, version: int, signed_version: int) -> str | None:
    """Why an approved grant of this version, whose last approval was signed for `signed_version`, cannot be approved; None if it can.

    Every suspension raises the version and its event says to which; what brings a grant back says the version it did so at.
    A version never falls, so a row of an earlier one was set back, also where it says what was proved then.
    """
    for kind, _ in history:
        if kind in _ENDED:
            return f"the log says {kind}"
    suspended = max((data["version"] for kind, data in history if kind == kinds.GRANT_SUSPENDED), default=0)
    back = max((data["version"] for kind, data in history if _brings_back(kind, data)), default=0)
    if suspended > max(back, signed_version):
        return (
            f"the log says {kinds.GRANT_SUSPENDED} at version {suspended}, and nothing that brought it back"
        )
    known = max((data["version"] for _, data in history if "version" in data), default=0)
    if known > version:
        return f"the log knows its version {known}, and its row says {version}"
    return None


def _brings_back(kind: str, data: Mapping[str, Any]) -> bool:
    # Of two suspensions, that of a person and that of an administrator, one may be resumed and the other go on.
    return kind in _BACK and data.get("status", "approved") == "approved"
