"""The log in the admin site, and the read-only base class of every app's admin pages.

Rows change through services only.
"""

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

from audit import kinds
from audit.log.event_inserts import KINDS
from audit.models import Checkpoint, CheckpointCopy, Cosignature, Event, Segment

# A search that no index supports covers only this many of the newest events.
LAST_EVENTS: Final = 50_000
# A list counts its events up to this number and no further.
MOST_COUNTED: Final = 10_000
# Acts on one service provider or key that a list finds.
MOST_ACTS: Final = 1_000
_INDEXED: Final = ("id", "agent_id", "human_id", "grant_id")
# No index has the service provider or the key of an event. The acts on them are few: the index of
# the kinds finds them.
PROVIDER_ACTS: Final = (
    kinds.SERVICE_PROVIDER_CREATED,
    kinds.SERVICE_PROVIDER_SECRET_ROTATED,
    kinds.SERVICE_PROVIDER_SECRETS_ENDED,
    kinds.SERVICE_PROVIDER_AUDIENCE_CHANGED,
    kinds.SERVICE_PROVIDER_ALLOWED_CHANGED,
    kinds.SERVICE_PROVIDER_SUSPENDED,
    kinds.SERVICE_PROVIDER_RESUMED,
    kinds.SERVICE_PROVIDER_REVOKED,
    kinds.LOGO_PROPOSED,
    kinds.LOGO_APPROVED,
    kinds.LOGO_REMOVED,
)
KEY_ACTS: Final = (kinds.KEY_PUBLISHED, kinds.KEY_ACTIVATED, kinds.KEY_DISABLED)

_M = TypeVar("_M", bound=Model)

if TYPE_CHECKING:

    class _ModelAdmin(admin.ModelAdmin[_M]):
        pass

else:

    class _ModelAdmin(admin.ModelAdmin):
        # Django's class takes no type argument at run time, so accept and ignore it.
        def __class_getitem__(cls, _item: Any) -> type:
            return cls


class ReadOnlyAdmin(_ModelAdmin[_M]):
    """Shows rows and changes none: every change is an action that calls a service."""

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> Any:
        # Django's own title says "Select … to view".
        title = capfirst(self.opts.verbose_name_plural)
        return super().changelist_view(request, {"title": title} | (extra_context or {}))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class KindFilter(admin.SimpleListFilter):
    """Filter by kind. The choices come from KINDS: reading them from the events is too slow."""

    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(kind, kind) for kind in sorted(KINDS)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Event]) -> QuerySet[Event]:
        return queryset.filter(kind=self.value()) if self.value() else queryset


class ShortPaginator(Paginator):  # type: ignore[type-arg]  # only the stub takes an argument
    """Counts at most MOST_COUNTED rows: counting the whole log takes too long for a page."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return int(rows[:MOST_COUNTED].count())


class EventAdmin(ReadOnlyAdmin[Event]):
    list_display = (
        "at",
        "kind",
        "outcome",
        "reason",
        "actor_kind",
        "actor_id",
        "agent_id",
        "grant_id",
    )
    list_filter = ("outcome", KindFilter)
    # Django shows the search field only if this is set; get_search_results does the search.
    search_fields = ("id",)
    ordering = ("-id",)
    # Sorting by any other column would sort the whole log for one page.
    sortable_by = ()
    paginator = ShortPaginator
    # The salt keeps the content of a leaf hash from being guessed, so no page shows it.
    exclude = ("salt",)
    show_full_result_count = False

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        # With a filter on the salt, a user could guess it byte by byte.
        return not lookup.startswith("salt") and super().lookup_allowed(lookup, value, request)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Event], search_term: str
    ) -> tuple[QuerySet[Event], bool]:
        """Search ids by index and other text in the newest LAST_EVENTS; all events take minutes."""
        if not (text := search_term.strip()):
            return queryset, False
        try:
            found = uuid.UUID(text)
        except ValueError:
            about_key = acts_on_key(text)
            if about_key.exists():
                return queryset.filter(pk__in=about_key), False
            return _among_the_last(queryset, text), False
        for column in _INDEXED:
            if Event.objects.filter(**{column: found}).exists():
                return queryset.filter(**{column: found}), False
        about_provider = acts_on_service_provider(found)
        if about_provider.exists():
            return queryset.filter(pk__in=about_provider), False
        return _among_the_last(queryset, text), False


def acts_on_service_provider(pk: uuid.UUID) -> QuerySet[Event]:
    """What was done to a service provider, without what agents did there."""
    return _newest_acts(Event.objects.filter(kind__in=PROVIDER_ACTS, service_provider_id=pk))


def acts_on_key(kid: str) -> QuerySet[Event]:
    """The events of a signing key's life."""
    return _newest_acts(Event.objects.filter(kind__in=KEY_ACTS, data__kid=kid))


def _newest_acts(rows: QuerySet[Event]) -> QuerySet[Event]:
    # Read without an order: for one, PostgreSQL might read the whole log backwards instead.
    ids = sorted(rows.order_by().values_list("pk", flat=True))
    return Event.objects.filter(pk__in=ids[-MOST_ACTS:])


def _among_the_last(events: QuerySet[Event], text: str) -> QuerySet[Event]:
    oldest = (
        Event.objects.order_by("-id")
        .values_list("id", flat=True)[LAST_EVENTS : LAST_EVENTS + 1]
        .first()
    )
    recent = events if oldest is None else events.filter(id__gt=oldest)
    return recent.filter(Q(request_id=text) | Q(token_jti=text) | Q(actor_id=text))


class CheckpointAdmin(ReadOnlyAdmin[Checkpoint]):
    list_display = ("size", "at", "root_hash")
    # The `root_hash` column shows these bytes as text.
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
        # Set here because a change of the model's Meta needs a migration.
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
