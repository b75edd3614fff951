"""A filtered list of the control room as CSV, generated while it is sent."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import label_for_field, lookup_field
from django.core.exceptions import ObjectDoesNotExist
from django.http import HttpRequest, StreamingHttpResponse
from django.utils import timezone

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.untrusted_text import legible
from approvals.views.activity_export import BYTE_ORDER_MARK, csv_line

# Rows in one file. Its last line says if there are more: filter by date for the rest.
MOST: Final = 10_000
_AT_ONCE: Final = 500


def export_list(model_admin: Any, request: HttpRequest) -> StreamingHttpResponse:
    """The list with this request's search and filters, in its order, with its columns.

    Raises InvalidRequestError for a filter that the list does not have.
    """
    try:
        rows = model_admin.get_changelist_instance(request).queryset
    except IncorrectLookupParameters as error:
        raise InvalidRequestError("The list has no such filter.") from error
    # Read the ids first, so that rows added or removed meanwhile do not shift a page.
    ids = list(rows.values_list("pk", flat=True)[: MOST + 1])
    name = f"agentauth-{model_admin.opts.model_name}-{timezone.now():%Y-%m-%d}.csv"
    headers = {"Content-Disposition": f"attachment; filename={name}", "Cache-Control": "no-store"}
    return StreamingHttpResponse(
        _lines(model_admin, request, ids), content_type="text/csv; charset=utf-8", headers=headers
    )


def _lines(model_admin: Any, request: HttpRequest, ids: list[Any]) -> Iterator[str]:
    columns = [name for name in model_admin.get_list_display(request) if name != "action_checkbox"]
    labels = [label_for_field(name, model_admin.model, model_admin) for name in columns]
    yield BYTE_ORDER_MARK + csv_line(["id", *labels])
    related = model_admin.list_select_related
    for first in range(0, min(len(ids), MOST), _AT_ONCE):
        part = ids[first : min(first + _AT_ONCE, MOST)]
        rows = model_admin.get_queryset(request)
        found = (rows.select_related(*related) if related else rows).in_bulk(part)
        for pk in part:
            if pk in found:
                yield csv_line([pk, *(_cell(name, found[pk], model_admin) for name in columns)])
    if len(ids) > MOST:
        said = f"The list ends here: a file holds at most {MOST} rows. Filter by date for the rest."
        yield csv_line([said])


def _cell(name: str, row: Any, model_admin: Any) -> object:
    try:
        _field, _attribute, value = lookup_field(name, row, model_admin)
    except ObjectDoesNotExist:
        return ""
    if isinstance(value, datetime):
        return timezone.localtime(value).isoformat()
    # Others choose names: keep direction marks and look-alike spaces out of the file.
    return legible(str(value)) if value is not None else ""
