"""The events API. Who may read what is the principal's own answer: `request.user.audit_filter()`."""

import re
import uuid
from dataclasses import dataclass
from typing import Any, Protocol

from django.db.models import QuerySet
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.reading import shown
from audit.entries import event_body
from audit.models import Event

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
_KIND = re.compile(r"[a-z_]{1,32}(\.[a-z_]{1,32}){1,3}")
_PARAMETERS = frozenset({"agent", "kind", "after", "limit"})


class Reader(Protocol):
    """What audit asks of a principal, so that it need know no other app."""

    def audit_filter(self) -> dict[str, str] | None:
        """Columns an event must match for this principal to read it; {} is every event, None is no event."""


class MayReadEvents(BasePermission):
    def has_permission(self, request: Request, view: APIView) -> bool:
        return _scope(request) is not None


@dataclass(frozen=True, slots=True)
class _Query:
    filters: dict[str, Any]
    after: "_Cursor"
    limit: int


@dataclass(frozen=True, slots=True)
class _Cursor:
    """Where a page ended: the last leaf it showed, and the last event that had no leaf yet."""

    leaf_index: int = -1
    waiting: uuid.UUID | None = None

    def __str__(self) -> str:
        return f"{self.leaf_index}.{self.waiting}" if self.waiting else str(self.leaf_index)


class EventsView(APIView):
    """GET /v1/audit/events (docs/protocol.md section 9): in the order of the log, then what is not yet numbered.

    Following the numbers misses nothing: an event that commits late gets a later number, whatever its id. One
    shown while it waited (`leaf_index` null) may come again with its number.
    """

    permission_classes = (MayReadEvents,)

    def get(self, request: Request) -> Response:
        query = _parse(request)
        readable = Event.objects.filter(**(_scope(request) or {})).filter(**query.filters)
        events, cursor = _page(readable, query)
        return Response(
            {
                "results": [_rendered(event) for event in events],
                "next": None if cursor is None else str(cursor),
            },
            headers={"Cache-Control": "no-store"},
        )


def _scope(request: Request) -> dict[str, str] | None:
    ask = getattr(request.user, "audit_filter", None)
    scope: dict[str, str] | None = ask() if ask else None
    return scope


def _page(readable: QuerySet[Event], query: _Query) -> tuple[list[Event], _Cursor | None]:
    ask = query.limit + 1
    rows = readable.select_related("leaf").prefetch_related("openings")
    # Waiting ones first: one that is numbered between the two questions is then in both answers, never in none.
    later = rows.filter(queue_entry__isnull=False).order_by("id")
    waiting = list((later.filter(id__gt=query.after.waiting) if query.after.waiting else later)[:ask])
    numbered = rows.filter(leaf__leaf_index__gt=query.after.leaf_index).order_by("leaf__leaf_index")
    found = list(numbered[:ask])
    shown = {event.id for event in found}
    found = [*found, *(event for event in waiting if event.id not in shown)][:ask]
    events = found[: query.limit]
    return events, _cursor(events, query.after) if len(found) > query.limit else None


def _cursor(events: list[Event], after: _Cursor) -> _Cursor:
    numbered = [event.leaf.leaf_index for event in events if hasattr(event, "leaf")]
    waiting = [event.id for event in events if not hasattr(event, "leaf")]
    return _Cursor(max(numbered, default=after.leaf_index), max(waiting, default=after.waiting))


def _rendered(event: Event) -> dict[str, Any]:
    openings = {
        opening.member: {"salt": b64u_encode(bytes(opening.salt)), "value": opening.value}
        for opening in event.openings.all()
    }
    return event_body(event) | {
        "salt": b64u_encode(bytes(event.salt)),
        "leaf_index": event.leaf.leaf_index if hasattr(event, "leaf") else None,
        "openings": openings,
    }


def _parse(request: Request) -> _Query:
    given = request.query_params
    if unknown := given.keys() - _PARAMETERS:
        raise InvalidRequestError(
            f"Unknown query parameter {shown(min(unknown))}: use agent, kind, after and limit."
        )
    if any(len(given.getlist(name)) > 1 for name in given):
        raise InvalidRequestError("A query parameter is given twice.")
    filters: dict[str, Any] = {}
    if "agent" in given:
        filters["agent_id"] = _id(given["agent"])
    if "kind" in given:
        filters["kind"] = _kind(given["kind"])
    return _Query(filters, _parse_cursor(given.get("after")), _parse_limit(given.get("limit")))


def _parse_cursor(text: str | None) -> _Cursor:
    if text is None:
        return _Cursor()
    index, _, waiting = text.partition(".")
    digits = index.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < len(str(2**63))):
        raise InvalidRequestError("The cursor is not one this API gave out; begin again without `after`.")
    return _Cursor(int(index), _id(waiting) if waiting else None)


def _parse_limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not (
        text.isascii() and text.isdigit() and len(text) <= len(str(MAX_LIMIT)) and 1 <= int(text) <= MAX_LIMIT
    ):
        raise InvalidRequestError(f"`limit` is a number from 1 to {MAX_LIMIT}.")
    return int(text)


def _kind(text: str) -> str:
    if not _KIND.fullmatch(text):
        raise InvalidRequestError("A kind is written as in kms.key.published.")
    return text


def _id(text: str) -> uuid.UUID:
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        parsed = None
    if parsed is None or str(parsed) != text:
        raise InvalidRequestError("An id is a lower-case UUID.")
    return parsed
