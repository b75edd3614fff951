"""What the log says against a grant whose row says approved: it ended, or is still suspended."""

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
# Kind and data of each event, oldest first.
History = Sequence[tuple[str, Mapping[str, Any]]]


def histories(grant_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID | None, History]:
    """The events that ended, suspended or brought back these grants, by grant. One query.

    Events of months that were dropped from the database are missing. The role of the verifier's own
    processes may not read them. Raises django.db errors.
    """
    events = Event.objects.filter(grant_id__in=grant_ids, kind__in=_ASKED).order_by("id")
    found: dict[uuid.UUID | None, list[tuple[str, Mapping[str, Any]]]] = {}
    for grant_id, kind, data in events.values_list("grant_id", "kind", "data"):
        found.setdefault(grant_id, []).append((kind, data))
    return dict(found)


def contradiction(history: History, *, version: int, signed_version: int) -> str | None:
    """How the log contradicts an approved grant of this `version`; None if it does not.

    Its last approval was signed for `signed_version`. Each suspension raises the version, and its
    event holds the new one. An event that brings a grant back holds the version at that time. A
    version never falls: a row below one in the log was set back, even to terms that were signed.
    """
    for kind, _ in history:
        if kind in _ENDED:
            return f"the log says {kind}"
    suspended = max(
        (data["version"] for kind, data in history if kind == kinds.GRANT_SUSPENDED), default=0
    )
    back = max((data["version"] for kind, data in history if _brings_back(kind, data)), default=0)
    if suspended > max(back, signed_version):
        return (
            f"the log says {kinds.GRANT_SUSPENDED} at version {suspended}, and no event that "
            "resumed it"
        )
    known = max((data["version"] for _, data in history if "version" in data), default=0)
    if known > version:
        return f"the log has its version {known}, but its row says {version}"
    return None


def _brings_back(kind: str, data: Mapping[str, Any]) -> bool:
    # If a person and an administrator both suspended it, it stays suspended after one resumes it.
    return kind in _BACK and data.get("status", "approved") == "approved"
