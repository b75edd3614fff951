"""Keys in the admin site, read-only; none of the columns is secret."""

from audit.admin import ReadOnlyAdmin
from kms.models import Key


class KeyAdmin(ReadOnlyAdmin[Key]):
    list_display = ("kid", "purpose", "state", "algorithm", "published_at", "active_from", "retired_at")
    list_filter = ("purpose", "state")
    ordering = ("-active_from",)
