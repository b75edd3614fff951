"""What an agent may know of a service provider, and the provider's own words."""

from collections.abc import Mapping
from typing import Final

from agentauth.openapi.example_values import ASKED_AT, PROVIDER
from agentauth.openapi.operation_types import Body, Operation, SuccessResponse, see_section

_POLICY: Final = {"allowed": ["read:calendar", "transact:payments"], "require_nonce": False}
_WORDS: Final = {
    "actions": {
        "transact:payments": {
            "label": "Pay a supplier",
            "sentence": "Pays a supplier {amount} from {resource}.",
            "icon": "money",
        }
    },
    "resources": {"payments": {"label": "The company account"}},
}
_VERSION: Final = {
    "version": 1,
    "sha256": "304ca3d9907e83412c94e4be946c8e32d3aea43ffc999fc67c7fd3b811a32b83",
    "status": "proposed",
    "proposed_at": ASKED_AT,
    "decided_at": None,
    "approval_url": "https://auth.example.com/catalogues/01920000-0000-7000-8000-00000000000c/",
}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "GET /v1/service-providers/{reference}": Operation(
        "service_provider",
        "A service provider, before requesting a grant",
        answers={200: SuccessResponse("", "ServiceProvider", PROVIDER | _POLICY)},
        errors=["not_found"],
    ),
    "POST /v1/catalogue": Operation(
        "propose_catalogue",
        "Propose the next version of the service provider's own words",
        answers={
            201: SuccessResponse(
                "The version waits for an administrator.", "CatalogueVersion", _VERSION
            ),
            200: SuccessResponse(
                "This catalogue waits already, or is the approved one.",
                "CatalogueVersion",
                _VERSION,
            ),
        },
        description=(
            "People read these words after the registry's own sentence, marked as the service's, "
            f"once an administrator has signed for this version. {see_section(3)}"
        ),
        body=Body("CatalogueRequest", {"catalogue": _WORDS}),
        errors=["invalid_state"],
    ),
    "GET /v1/catalogue": Operation(
        "read_catalogue",
        "The approved version, and the one that waits",
        answers={
            200: SuccessResponse(
                "", "Catalogues", {"approved": None, "proposed": _VERSION | {"catalogue": _WORDS}}
            )
        },
    ),
}
