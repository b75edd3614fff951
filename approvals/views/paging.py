"""Long lists on pages: newest first, a page at a time."""

import uuid
from typing import Any, TypeVar

from django.db.models import Model, QuerySet
from django.http import HttpRequest

from agentauth.protocol.identifiers import parse_id
from audit.models import Event

Row = TypeVar("Row", bound=Model)
# Each row takes 1 to 2 ms to render.
PAGE = 30


def page_of(rows: QuerySet[Row], request: HttpRequest) -> tuple[list[Row], dict[str, Any]]:
    """The rows that `?after=` asks for, and template context: the cursor `next`, and `first_page`.

    Ids rise with time, so they serve as order and cursor.
    """
    after = request.GET.get("after")
    if after is not None:
        rows = rows.filter(pk__lt=id_or_none_of_ours(after))
    found = list(rows.order_by("-pk")[: PAGE + 1])
    more = len(found) > PAGE
    return found[:PAGE], {"next": found[PAGE - 1].pk if more else None, "first_page": after is None}


def newest_events(column: str, value: uuid.UUID) -> QuerySet[Event]:
    """Events of one person, agent or grant, newest first, for a page of them.

    A range, ordered by the column first: only the column's own index has that order. With `=`, and
    where nearly all events belong to one person, a prepared plan walks the primary key instead:
    for anyone else through the whole log.
    """
    whose = {f"{column}__gte": value, f"{column}__lte": value}
    return Event.objects.filter(**whose).order_by(f"-{column}", "-pk")


def id_or_none_of_ours(text: str) -> uuid.UUID:
    """The id in `text`; for malformed text the nil id, which no row has and none sorts below."""
    try:
        return parse_id(text)
    except ValueError:
        return uuid.UUID(int=0)
