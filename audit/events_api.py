"""The events API. `request.user.audit_filter()` decides which events the caller may read."""

import re
from dataclasses import dataclass
from typing import Any, Protocol

from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agentauth.protocol.errors import InvalidRequestError
from audit.log.event_encoding import event_with_openings
from audit.log.listing import Cursor, Descent, Page, page_newest_first, page_of_log
from audit.query_parameters import query, read_id

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
_NO_CURSOR = (
    "The cursor is not one that this API returned for this order; start again without `after`."
)
_KIND = re.compile(r"[a-z_]{1,32}(\.[a-z_]{1,32}){1,3}")


class Reader(Protocol):
    """The one method a principal must have, so that audit imports no other app."""

    def audit_filter(self) -> dict[str, str] | None:
        """Columns an event must match to be readable; {} allows every event, None allows none."""


class MayReadEvents(BasePermission):
    def has_permission(self, request: Request, view: APIView) -> bool:
        return _scope(request) is not None


@dataclass(frozen=True, slots=True)
class _Query:
    filters: dict[str, Any]
    after: Cursor | Descent
    limit: int

    def page(self, scope: dict[str, str]) -> Page[Cursor] | Page[Descent]:
        """The requested page, limited to events in `scope`."""
        wanted = [*scope.items(), *self.filters.items()]
        if isinstance(self.after, Descent):
            return page_newest_first(wanted=wanted, after=self.after, limit=self.limit)
        return page_of_log(wanted=wanted, after=self.after, limit=self.limit)


class EventsView(APIView):
    """GET /v1/audit/events (docs/protocol.md section 9): in log order or reversed.

    In log order, events without a number come last. Paging misses no event: one that commits late
    gets a later number, whatever its id. An event shown while it waited (`leaf_index` null) may be
    shown again with its number. Pages before the last may be short.
    """

    permission_classes = (MayReadEvents,)

    def get(self, request: Request) -> Response:
        page = _parse(request).page(_scope(request) or {})
        return Response(
            {
                "results": [
                    event_with_openings(event, leaf_index) for event, leaf_index in page.events
                ],
                "next": None if page.end is None else str(page.end),
            },
            headers={"Cache-Control": "no-store"},
        )


def _scope(request: Request) -> dict[str, str] | None:
    ask = getattr(request.user, "audit_filter", None)
    scope: dict[str, str] | None = ask() if ask else None
    return scope


def _parse(request: Request) -> _Query:
    given = query(request, "agent", "human", "kind", "order", "after", "limit")
    filters: dict[str, Any] = {}
    for name in ("agent", "human"):
        if name in given:
            filters[f"{name}_id"] = read_id(given[name])
    if "kind" in given:
        filters["kind"] = _kind(given["kind"])
    order = given.get("order", "asc")
    if order not in {"asc", "desc"}:
        raise InvalidRequestError("`order` must be asc or desc.")
    parse = _parse_cursor if order == "asc" else _parse_descent
    return _Query(filters, parse(given.get("after")), _parse_limit(given.get("limit")))


def _parse_cursor(text: str | None) -> Cursor:
    if text is None:
        return Cursor()
    index, _, waiting = text.partition(".")
    return Cursor(_leaf_index(index), read_id(waiting) if waiting else None)


def _parse_descent(text: str | None) -> Descent:
    if text is None:
        return Descent()
    if not text.startswith("~"):
        raise InvalidRequestError(_NO_CURSOR)
    index, _, waiting = text[1:].partition(".")
    return Descent(_leaf_index(index)) if index else Descent(waiting=read_id(waiting))


def _leaf_index(text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < len(str(2**63))):
        raise InvalidRequestError(_NO_CURSOR)
    return int(text)


def _parse_limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not (
        text.isascii()
        and text.isdigit()
        and len(text) <= len(str(MAX_LIMIT))
        and 1 <= int(text) <= MAX_LIMIT
    ):
        raise InvalidRequestError(f"`limit` must be a number from 1 to {MAX_LIMIT}.")
    return int(text)


def _kind(text: str) -> str:
    if not _KIND.fullmatch(text):
        raise InvalidRequestError("`kind` must be written as in kms.key.published.")
    return text
