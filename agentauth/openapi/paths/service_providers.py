"""What an agent may know of a service provider."""

from collections.abc import Mapping
from typing import Final

from agentauth.openapi.example_values import PROVIDER
from agentauth.openapi.operations import Operation, SuccessResponse

_POLICY: Final = {"allowed": ["read:calendar", "transact:payments"], "require_nonce": False}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "GET /v1/service-providers/{reference}": Operation(
        "service_provider",
        "A service provider, before requesting a grant",
        {200: SuccessResponse("", "ServiceProvider", PROVIDER | _POLICY)},
        errors=["not_found"],
    ),
}
