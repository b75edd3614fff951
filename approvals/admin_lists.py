"""For every list of the control room: a filter by date, and export as CSV."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin
from django.db.models import QuerySet, UUIDField
from django.http import HttpRequest, StreamingHttpResponse
from django.urls import path
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_safe

from approvals.admin_export import export_list
from approvals.admin_permissions import READS
from approvals.views.request_helpers import human_of
from audit.new_ids import first_id_at
from registry.roles import Permission
from registry.services.roles import check_permission

_SPANS: Final = {
    "hour": (_("Last hour"), timedelta(hours=1)),
    "day": (_("Last 24 hours"), timedelta(days=1)),
    "week": (_("Last 7 days"), timedelta(days=7)),
    "month": (_("Last 30 days"), timedelta(days=30)),
    "year": (_("Last 365 days"), timedelta(days=365)),
}


class WhenFilter(admin.SimpleListFilter):
    """Filters by creation time, using ids: they contain the time, and every table indexes them.

    Django's `date_hierarchy` would group the whole table by month for each page.
    """

    title = _("when")
    parameter_name = "when"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [(name, label) for name, (label, _span) in _SPANS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if (wanted := self.value()) not in _SPANS:
            return queryset
        return queryset.filter(pk__gte=first_id_at(timezone.now() - _SPANS[wanted][1]))


if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = object


class ListPages(_ModelAdmin):
    """For a ModelAdmin of the control room: its list."""

    change_list_template = "admin/rows.html"
    # Counting the rows of every filter would read whole tables.
    show_facets = admin.ShowFacets.NEVER
    # Each row takes 1 ms to render.
    list_per_page = 50

    def get_list_filter(self, request: HttpRequest) -> Any:
        filters = [*super().get_list_filter(request)]
        has_times = isinstance(self.opts.pk, UUIDField)
        return [*filters, WhenFilter] if has_times else filters

    def get_urls(self) -> Any:
        name = f"{self.opts.app_label}_{self.opts.model_name}_export"
        view = self.admin_site.admin_view(require_safe(self.export))
        return [path("export.csv", view, name=name), *super().get_urls()]

    def export(self, request: HttpRequest) -> StreamingHttpResponse:
        """The list as a file, with the filters and the search term of the URL."""
        check_permission(human_of(request), Permission.EXPORT)
        check_permission(human_of(request), READS.get(self.model, Permission.OWN))
        return export_list(self, request)
