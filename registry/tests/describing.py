"""A service provider's catalogue in tests."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from registry.models import CatalogueVersion, ServiceProvider
from registry.services.catalogues import approve_catalogue, propose_catalogue
from registry.tests.cast import TESTER

WORDS: dict[str, Any] = {
    "actions": {
        "read:calendar": {
            "label": "Look at your calendar",
            "sentence": "Shows when you are busy in {resource}.",
            "icon": "calendar",
            "arguments": {"days": {"label": "How far", "format": "number", "unit": "days"}},
        },
        "transact:payments": {
            "label": "Pay a supplier",
            "sentence": "Pays a supplier {amount} from {resource}.",
            "icon": "money",
        },
        "write:files": {
            "label": "Save a file",
            "sentence": "Saves a file in {resource}.",
            "risk": "high",
            "arguments": {"size": {"label": "File size", "format": "bytes"}},
        },
    },
    "resources": {
        "calendar": {"label": "Your shared calendar"},
        "payments": {"label": "The company account"},
    },
}


def proposed(
    provider: ServiceProvider, now: datetime, document: Mapping[str, Any] = WORDS
) -> CatalogueVersion:
    row, _is_new = propose_catalogue(
        service_provider=provider, document=dict(document), actor=TESTER, now=now
    )
    return row


def published(
    provider: ServiceProvider, now: datetime, document: Mapping[str, Any] = WORDS
) -> CatalogueVersion:
    """An approved version, by the service that a verified signature calls."""
    row = proposed(provider, now, document)
    approve_catalogue(row=row, actor=TESTER, now=now)
    row.refresh_from_db()
    return row
