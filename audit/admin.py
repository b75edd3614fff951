"""Events in the admin site, and the read-only base every app's rows use. Rows change through services alone."""

from typing import TYPE_CHECKING, Any, TypeVar

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from audit.models import Event

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

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class EventAdmin(ReadOnlyAdmin[Event]):
    list_display = ("at", "kind", "outcome", "reason", "actor_kind", "actor_id", "agent_id", "grant_id")
    list_filter = ("outcome", "kind")
    search_fields = ("id", "actor_id", "agent_id", "human_id", "grant_id", "token_jti", "request_id")
    ordering = ("-id",)
    # The salt is what keeps a leaf hash from being guessed: it belongs to no page.
    exclude = ("salt",)
    show_full_result_count = False

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        # A filter on the salt would let it be guessed byte by byte.
        return not lookup.startswith("salt") and super().lookup_allowed(lookup, value, request)
