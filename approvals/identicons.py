"""A small picture for each agent and service, drawn from its id, so that look-alikes differ.

Decoration beside the name: two rows whose names look the same have different pictures. It uses the
id and not the key, because an agent that rotates its key stays the same agent.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from uuid import UUID

from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from registry.models import Agent, ServiceProvider

# Colours, each a class of the stylesheet.
_COLOURS = 8
_SIDE = 5
_HALF = 3
_CELL = 6
_MARGIN = 9
# Filled cells of 25. With fewer or more, pictures would look alike.
_FEWEST = 7
_MOST = 18


def identity_mark(row: Agent | ServiceProvider) -> SafeString:
    """The picture as inline SVG: a square for an agent, a disc for a service."""
    colour, cells = _drawing(str(row.pk))
    path = "".join(f"M{x} {y}h{_CELL}v{_CELL}h-{_CELL}z" for x, y in cells)
    ground = (
        '<circle cx="24" cy="24" r="24"/>'
        if isinstance(row, ServiceProvider)
        else '<rect width="48" height="48" rx="12"/>'
    )
    # Safe: `ground` is one of our constants, and the id only determines numbers.
    return format_html(
        '<svg class="identity identity-{}" viewBox="0 0 48 48" aria-hidden="true">{}<path d="{}"/>'
        "</svg>",
        colour,
        SafeString(ground),
        path,
    )


def logo_or_mark(provider: ServiceProvider, logos: Mapping[UUID, str]) -> SafeString:
    """The service's own logo if an administrator approved one, else our picture of its id."""
    if provider.pk not in logos:
        return identity_mark(provider)
    # The name stands beside it, so a screen reader gets no text for the picture.
    return format_html(
        '<img class="identity logo" src="/logos/{}.png" width="52" height="52" alt="" title="{}">',
        logos[provider.pk],
        _("The service’s own logo"),
    )


# As many as a few busy pages show.
@lru_cache(maxsize=2_000)
def _drawing(identity: str) -> tuple[int, list[tuple[int, int]]]:
    """A colour, and the corners of the cells that are filled: the same for the same id."""
    for attempt in range(256):
        digest = hashlib.sha256(f"{identity} {attempt}".encode()).digest()
        bits = int.from_bytes(digest[:2])
        cells = [
            (_MARGIN + _CELL * x, _MARGIN + _CELL * y)
            for y in range(_SIDE)
            for x in range(_SIDE)
            # The right half mirrors the left.
            if bits >> (y * _HALF + min(x, _SIDE - 1 - x)) & 1
        ]
        if _FEWEST <= len(cells) <= _MOST:
            return digest[2] % _COLOURS + 1, cells
    raise RuntimeError(identity)
