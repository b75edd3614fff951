"""The filtered activity as a file, generated while it is sent: CSV for people, JSON Lines."""

import csv
import json
import re
from collections.abc import Iterator
from datetime import datetime
from io import StringIO
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from django.http import HttpRequest, StreamingHttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_safe

from agentauth.protocol.capability import PAYEE
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.untrusted_text import legible
from approvals.views.activity_search import ActivitySearch, read_search
from approvals.views.decision_event_sentences import ACTS, opened_details
from approvals.views.event_sentences import describe_events
from approvals.views.request_helpers import human_of, require_sign_in
from audit.log.event_encoding import event_with_openings
from audit.models import Event, Leaf

# Events in one file. A longer list takes several files, by dates.
MOST: Final = 10_000
_PAGE: Final = 500
# Pages of the search in one file, each of which examines at most EXAMINED events: a filter that
# matches little would otherwise read all of a person's events in one request.
_PAGES: Final = 40
# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA: Final = tuple("=+-@\t\r\n＝＋－＠")
# A spreadsheet whose locale separates by one of these takes what follows for a cell of its own,
# also behind spaces and quotes.
_INNER_FORMULA: Final = re.compile(r"([;|\t\r\n])(?=[\s\"]*[=+\-@＝＋－＠])")
# So that spreadsheets read the file as UTF-8.
BYTE_ORDER_MARK: Final = "\ufeff"
COLUMNS: Final = (
    "time", "sentence", "by", "agent", "service", "outcome", "reason", "type", "resource",
    "amount", "currency", "payee", "arguments", "log_number", "event_id", "agent_id",
    "service_provider_id", "grant_id", "token_jti",
)  # fmt: skip


class Row(NamedTuple):
    """One event with what the pages say about it."""

    event: Event
    line: dict[str, Any]
    number: int | None


class Cut(NamedTuple):
    """The file ends before the list does: after `sent` events, searched back to `reached`."""

    sent: int
    reached: datetime | None


@require_safe
@require_sign_in
def as_csv(request: HttpRequest) -> StreamingHttpResponse:
    search = _read(request)
    return _file(_csv(search), "text/csv; charset=utf-8", "csv")


@require_safe
@require_sign_in
def as_json_lines(request: HttpRequest) -> StreamingHttpResponse:
    search = _read(request)
    return _file(_json_lines(search), "application/x-ndjson", "jsonl")


def _read(request: HttpRequest) -> ActivitySearch:
    search = read_search(request.GET, human_of(request))
    for name, error in search.errors.items():
        raise InvalidRequestError(f"`{name}`: {error}")
    return search


def _file(lines: Iterator[str], media_type: str, ending: str) -> StreamingHttpResponse:
    name = f"attachment; filename=agentauth-activity-{timezone.now():%Y-%m-%d}.{ending}"
    headers = {"Content-Disposition": name, "Cache-Control": "no-store"}
    return StreamingHttpResponse(lines, content_type=media_type, headers=headers)


def _rows(search: ActivitySearch) -> Iterator[Row | Cut]:
    """The newest MOST matching events of at most _PAGES pages; then a Cut if there may be more."""
    after, sent, reached = None, 0, None
    for _number in range(_PAGES):
        page = search.page(after, min(_PAGE, MOST - sent))
        yield from _described(page.events)
        sent, after = sent + len(page.events), page.next
        if after is None:
            return
        reached = page.reached or page.events[-1].at
        if sent >= MOST:
            break
    yield Cut(sent, reached)


def _described(events: list[Event]) -> Iterator[Row]:
    leaves = Leaf.objects.filter(event_id__in=[event.pk for event in events])
    numbers = dict(leaves.values_list("event_id", "leaf_index"))
    for line in describe_events(events):
        yield Row(line["event"], line, numbers.get(line["event"].pk))


def _csv(search: ActivitySearch) -> Iterator[str]:
    zone = ZoneInfo(search.human.time_zone)
    yield BYTE_ORDER_MARK + csv_line(COLUMNS)
    for row in _rows(search):
        if isinstance(row, Cut):
            yield csv_line([_ending(row, zone)])
        else:
            yield csv_line(_cells(row, zone))


def _ending(cut: Cut, zone: ZoneInfo) -> str:
    if cut.sent >= MOST:
        said = _("The list ends here: a file holds at most %(n)s events. Choose earlier dates.")
        return said % {"n": MOST}
    said = ngettext(
        "The list ends here: this is the newest event that matches, searched back to"
        " %(at)s. Older events were not searched. Choose earlier dates.",
        "The list ends here: these are the newest %(n)s events that match, searched back to"
        " %(at)s. Older events were not searched. Choose earlier dates.",
        cut.sent,
    )
    return said % {"n": cut.sent, "at": cut.reached and cut.reached.astimezone(zone).isoformat()}


def _cells(row: Row, zone: ZoneInfo) -> list[Any]:
    event = row.event
    action = event.data.get("action") if isinstance(event.data, dict) else None
    action = action if isinstance(action, dict) else {}
    amount = action.get("amount", {})
    details = opened_details(event) if event.kind in ACTS else {}
    arguments = details.get("arguments", {})
    payee = arguments.get(PAYEE)
    pays = action.get("type") == "transact" and isinstance(payee, str)
    return [
        event.at.astimezone(zone).isoformat(),
        row.line["text"],
        row.line["who"],
        legible(row.line["agent"]),
        legible(row.line["service"]),
        event.outcome,
        event.reason,
        action.get("type"),
        details.get("resource"),
        amount.get("value"),
        amount.get("currency"),
        legible(payee) if pays else None,
        json.dumps(arguments) if arguments else None,
        row.number,
        event.pk,
        event.agent_id,
        event.service_provider_id,
        event.grant_id,
        event.token_jti,
    ]


def csv_line(cells: Any) -> str:
    """One line of a CSV file that no spreadsheet takes for formulas."""
    text = StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerow([neutral(each) for each in cells])
    return text.getvalue()


def neutral(cell: object) -> str:
    """A cell's text that no spreadsheet takes for a formula: an apostrophe stands before each."""
    text = _INNER_FORMULA.sub(r"\1'", "" if cell is None else str(cell))
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def _json_lines(search: ActivitySearch) -> Iterator[str]:
    last: datetime | None = None
    for row in _rows(search):
        if isinstance(row, Cut):
            ends = {"last_at": last, "searched_back_to": row.reached}
            shown = {name: at and at.isoformat() for name, at in ends.items()}
            yield json.dumps({"truncated": True} | shown) + "\n"
        else:
            last = row.event.at
            told = {"sentence": row.line["text"]}
            told |= {name: row.line[name] for name in ("agent", "service")}
            yield json.dumps(told | {"event": event_with_openings(row.event, row.number)}) + "\n"
