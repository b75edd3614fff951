"""An event's data as a reader with access to its openings sees it."""

from typing import Any

from audit.models import Event


def opened(event: Event) -> dict[str, Any]:
    """Replace each commitment by its hidden value; erased ones stay commitments."""
    return {**event.data, **dict(event.openings.values_list("member", "value"))}
