"""JSON Schemas of catalogues: what a service provider proposes, and its status."""

from collections.abc import Mapping
from typing import Any, Final

from agentauth.openapi.value_schemas import (
    ARGUMENT,
    Schema,
    integer,
    nullable,
    one_of,
    record,
    ref,
    string,
)
from agentauth.protocol.catalogue import (
    FORMATS,
    ICONS,
    MAX_ARGUMENTS,
    MAX_ENTRIES,
    MAX_LABEL,
    MAX_SENTENCE,
    MAX_UNIT,
    RISKS,
)
from registry.models import CatalogueVersion


def _named(value: str, description: str, maximum: int, **rules: Any) -> Schema:
    return {
        "type": "object",
        "description": description,
        "additionalProperties": ref(value),
        "maxProperties": maximum,
        **rules,
    }


_LABEL: Final = string("What the service calls it.", minLength=1, maxLength=MAX_LABEL)
_VERSION: Final = {
    "version": integer("Numbered from 1.", 1),
    "sha256": string("Of the canonical JSON (RFC 8785).", pattern="^[0-9a-f]{64}$"),
    "status": one_of(CatalogueVersion.Status.values),
    "proposed_at": ref("Time"),
    "decided_at": nullable(ref("Time")),
    "approval_url": string("Where an administrator reads and approves it.", format="uri"),
}
CATALOGUES: Final[Mapping[str, Schema]] = {
    "CatalogueArgument": record(
        "How people read an argument; its exact value always stays.",
        {"label": _LABEL},
        {
            "format": one_of(FORMATS, "How an integer is written; `text` if absent."),
            "unit": string("Only with the format `number`.", minLength=1, maxLength=MAX_UNIT),
        },
        closed=True,
    ),
    "CatalogueAction": record(
        "The service's words for one kind of act on a resource and everything below it.",
        {
            "label": _LABEL,
            "sentence": string(
                "May contain `{resource}` and, in a `transact`, `{amount}`.",
                minLength=1,
                maxLength=MAX_SENTENCE,
            ),
        },
        {
            "icon": one_of(ICONS),
            "risk": one_of(RISKS, "Shown if it is above the risk of the type."),
            "arguments": _named(
                "CatalogueArgument",
                "Argument to words.",
                MAX_ARGUMENTS,
                propertyNames={"pattern": f"^{ARGUMENT}$"},
            ),
        },
        closed=True,
    ),
    "CatalogueResource": record("", {"label": _LABEL}, closed=True),
    "Catalogue": record(
        "A service provider's own words (section 3); at most 16,384 bytes of canonical JSON.",
        {},
        {
            "actions": _named(
                "CatalogueAction",
                "By `type:resource` or `custom:namespace.name:resource`.",
                MAX_ENTRIES,
            ),
            "resources": _named("CatalogueResource", "By resource.", MAX_ENTRIES),
        },
        closed=True,
    ),
    "CatalogueRequest": record("", {"catalogue": ref("Catalogue")}, closed=True),
    "CatalogueVersion": record("One version and its state.", _VERSION),
    "Catalogues": record(
        "The version that people read, and the one that waits for an administrator.",
        dict.fromkeys(
            ("approved", "proposed"),
            nullable(record("", _VERSION | {"catalogue": ref("Catalogue")})),
        ),
    ),
}
