"""An event's data as whoever may read its openings reads it."""

from typing import Any

from audit.models import Event


def opened(event: Event) -> dict[str, Any]:
    """Each commitment replaced by what it hides; one that was erased stays."""
    return {**event.data, **dict(event.openings.values_list("member", "value"))}
