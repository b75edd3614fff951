"""The log in the admin site, and the read-only base every app's rows use. Rows change through services alone."""

import base64
import uuid
from typing import TYPE_CHECKING, Any, Final, TypeVar

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from audit.models import Checkpoint, CheckpointCopy, Cosignature, Event, Segment
from audit.prepared import KINDS

# How far a text is looked for that no index leads to, and how many events a list says it has, at most.
LAST_EVENTS: Final = 50_000
MOST_COUNTED: Final = 10_000
_INDEXED: Final = ("id", "agent_id", "human_id", "grant_id")

_M = TypeVar("_M", bound=Model)

if TYPE_CHECKING:

    class _ModelAdmin(admin.ModelAdmin[_M]):
        pass

else:

    class _ModelAdmin(admin.ModelAdmin):
        # Django's class takes no type argument at run time.
        def __class_getitem__(cls, _item: Any) -> type:
            return cls


class ReadOnlyAdmin(_ModelAdmin[_M]):
    """Shows rows and changes none: whatever may happen to one is an action that calls a service."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        # Django's own says "Select … to view".
        title = capfirst(self.opts.verbose_name_plural)
        return super().changelist_view(request, {"title": title} | (extra_context or {}))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class KindFilter(admin.SimpleListFilter):
    """The kinds there are, from the list of them: asking the events for theirs would read the whole log."""

    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(kind, kind) for kind in sorted(KINDS)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Event]) -> QuerySet[Event]:
        return queryset.filter(kind=self.value()) if self.value() else queryset


class ShortPaginator(Paginator):  # type: ignore[type-arg]  # the stubs' class takes an argument that Django's does not
    """Counts no further than a person turns pages."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return int(rows[:MOST_COUNTED].count())


class EventAdmin(ReadOnlyAdmin[Event]):
    list_display = ("at", "kind", "outcome", "reason", "actor_kind", "actor_id", "agent_id", "grant_id")
    list_filter = ("outcome", KindFilter)
    # What is done with a text is below; that there is something makes the field appear.
    search_fields = ("id",)
    ordering = ("-id",)
    # By any other column the whole log would be put in order for one page.
    sortable_by = ()
    paginator = ShortPaginator
    # The salt is what keeps a leaf hash from being guessed: it belongs to no page.
    exclude = ("salt",)
    show_full_result_count = False

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        # A filter on the salt would let it be guessed byte by byte.
        return not lookup.startswith("salt") and super().lookup_allowed(lookup, value, request)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Event], search_term: str
    ) -> tuple[QuerySet[Event], bool]:
        """By an index, or among the last: a text looked for in every event would take minutes."""
        if not (text := search_term.strip()):
            return queryset, False
        try:
            found = uuid.UUID(text)
        except ValueError:
            return _among_the_last(queryset, text), False
        for column in _INDEXED:
            if Event.objects.filter(**{column: found}).exists():
                return queryset.filter(**{column: found}), False
        return _among_the_last(queryset, text), False


def _among_the_last(events: QuerySet[Event], text: str) -> QuerySet[Event]:
    oldest = Event.objects.order_by("-id").values_list("id", flat=True)[LAST_EVENTS : LAST_EVENTS + 1].first()
    recent = events if oldest is None else events.filter(id__gt=oldest)
    return recent.filter(Q(request_id=text) | Q(token_jti=text) | Q(actor_id=text))


class CheckpointAdmin(ReadOnlyAdmin[Checkpoint]):
    list_display = ("size", "at", "root_hash")
    # Bytes are shown as text by the column below.
    exclude = ("root",)
    readonly_fields = ("root_hash",)
    search_fields = ("size",)
    ordering = ("-size",)
    show_full_result_count = False

    @admin.display(description=_("root hash"))
    def root_hash(self, row: Checkpoint) -> str:
        return base64.b64encode(bytes(row.root)).decode("ascii")


class CosignatureAdmin(ReadOnlyAdmin[Cosignature]):
    list_display = ("checkpoint", "witness", "at")
    list_select_related = ("checkpoint",)
    search_fields = ("witness", "checkpoint__size")
    ordering = ("-pk",)
    show_full_result_count = False


class CheckpointCopyAdmin(ReadOnlyAdmin[CheckpointCopy]):
    list_display = ("checkpoint", "store", "at")
    list_select_related = ("checkpoint",)
    search_fields = ("store", "checkpoint__size")
    ordering = ("-pk",)
    show_full_result_count = False

    def __init__(self, model: type[CheckpointCopy], admin_site: admin.AdminSite) -> None:
        super().__init__(model, admin_site)
        # Here and not in the model's Meta, which would take a migration.
        self.opts.verbose_name_plural = _("checkpoint copies")


class SegmentAdmin(ReadOnlyAdmin[Segment]):
    list_display = ("first", "end", "at", "manifest")
    exclude = ("manifest_sha256",)
    readonly_fields = ("manifest",)
    search_fields = ("first", "end")
    ordering = ("-first",)

    @admin.display(description=_("SHA-256 of its manifest"))
    def manifest(self, row: Segment) -> str:
        return bytes(row.manifest_sha256).hex()


ADMINS: list[tuple[Any, Any]] = [
    (Event, EventAdmin),
    (Checkpoint, CheckpointAdmin),
    (CheckpointCopy, CheckpointCopyAdmin),
    (Cosignature, CosignatureAdmin),
    (Segment, SegmentAdmin),
]
