"""Pictures, and a service provider's logo, in tests."""

import io
from datetime import datetime
from typing import Any

from PIL import Image

from registry.models import ServiceLogo, ServiceProvider
from registry.services.logo_encoder_process import encode
from registry.services.service_logos import approve_logo, propose_logo
from registry.tests.cast import TESTER

Colour = tuple[int, ...]
GREEN: Colour = (20, 120, 60)


def picture(
    size: tuple[int, int] = (200, 100), form: str = "PNG", colour: Colour = GREEN, **how: Any
) -> bytes:
    """One colour everywhere; `how` goes to Pillow's `save`."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, format=form, **how)
    return out.getvalue()


def logo(provider: ServiceProvider, now: datetime, colour: Colour = GREEN) -> ServiceLogo:
    """A logo that waits for an administrator."""
    made = encode(picture(colour=colour))
    return propose_logo(service_provider=provider, image=made, actor=TESTER, now=now)


def shown(provider: ServiceProvider, now: datetime, colour: Colour = GREEN) -> ServiceLogo:
    """An approved logo, by the service that a verified signature calls."""
    row = logo(provider, now, colour)
    approve_logo(row=row, actor=TESTER, now=now)
    row.refresh_from_db()
    return row
