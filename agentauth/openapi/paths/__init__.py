"""Every operation by method and path, one module per subject. Describe an endpoint only here."""

from collections.abc import Mapping
from typing import Final

from agentauth.openapi.operation_types import Operation
from agentauth.openapi.paths import (
    agents,
    audit,
    confirmations,
    discovery,
    grants,
    service_providers,
    tokens,
    verify,
)

# In the order for readers: the tag's name, its description, its operations.
GROUPS: Final[Mapping[str, tuple[str, Mapping[str, Operation]]]] = {
    "Discovery": (
        "The addresses of all endpoints, and the keys that sign. Public.",
        discovery.OPERATIONS,
    ),
    "Service providers": (
        "What an agent may know of one, and how it describes its API to people.",
        service_providers.OPERATIONS,
    ),
    "Agents": (
        "An agent registers with its own key, reads its own record, and can revoke itself.",
        agents.OPERATIONS,
    ),
    "Grants": (
        (
            "An agent requests a grant, waits for the human, reads the receipt, and can give the "
            "grant back."
        ),
        grants.OPERATIONS,
    ),
    "Tokens": ("Short-lived tokens bound to the agent's key.", tokens.OPERATIONS),
    "Verify": (
        (
            "A service provider asks whether an agent may do something now. An agent follows a "
            "confirmation."
        ),
        {**verify.OPERATIONS, **confirmations.OPERATIONS},
    ),
    "Audit": ("What happened, in a log that can be verified.", audit.OPERATIONS),
}
OPERATIONS: Final[Mapping[str, Operation]] = {
    key: operation for _, operations in GROUPS.values() for key, operation in operations.items()
}
