"""Discovery, key set, and this description."""

from collections.abc import Mapping
from typing import Final

from agentauth.openapi.example_values import ISSUER, STORY
from agentauth.openapi.operation_types import Operation, SuccessResponse
from agentauth.protocol.behavioural_envelope import DEFAULT_MAXIMA
from agentauth.protocol.capability import TYPES
from registry.api.discovery import ALGORITHMS

_AGENTAUTH: Final = {
    "version": 1,
    "issuer": ISSUER,
    "endpoints": {
        "agents": f"{ISSUER}/v1/agents",
        "grants": f"{ISSUER}/v1/grants",
        "tokens": f"{ISSUER}/v1/tokens",
        "revoke": f"{ISSUER}/v1/revoke",
        "verify": f"{ISSUER}/v1/verify",
        "verify_batch": f"{ISSUER}/v1/verify/batch",
        "introspect": f"{ISSUER}/v1/introspect",
        "service_providers": f"{ISSUER}/v1/service-providers",
        "confirmations": f"{ISSUER}/v1/confirmations",
        "audit_events": f"{ISSUER}/v1/audit/events",
        "audit_checkpoint": f"{ISSUER}/v1/audit/checkpoint",
        "audit_inclusion_proof": f"{ISSUER}/v1/audit/proof/inclusion",
        "audit_consistency_proof": f"{ISSUER}/v1/audit/proof/consistency",
        "audit_proof_bundle": f"{ISSUER}/v1/audit/proof/bundle",
        "audit_tiles": f"{ISSUER}/v1/audit/tile",
        "jwks": f"{ISSUER}/.well-known/jwks.json",
    },
    "capability_types": list(TYPES),
    "envelope": {
        "members": ["max_requests_per_minute", "max_burst", "budgets"],
        "maxima": DEFAULT_MAXIMA.to_json(),
    },
    "algorithms": ALGORITHMS,
    "receipt_jwks": STORY["receipt_keys"],
    "audit_vkeys": [STORY["audit_vkey"]],
    "key_introductions": {"token": [], "audit": [], "receipt": []},
}
_METADATA: Final = {
    "issuer": ISSUER,
    "jwks_uri": f"{ISSUER}/.well-known/jwks.json",
    "response_types_supported": [],
    "grant_types_supported": [],
    "revocation_endpoint": f"{ISSUER}/v1/revoke",
    "revocation_endpoint_auth_methods_supported": ["client_secret_basic"],
    "introspection_endpoint": f"{ISSUER}/v1/introspect",
    "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
    "dpop_signing_alg_values_supported": ALGORITHMS,
    "authorization_details_types_supported": ["agentauth"],
}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "GET /.well-known/agentauth": Operation(
        "discover",
        "Endpoints, algorithms, limits and keys of this registry",
        answers={200: SuccessResponse("May be cached for 30 s.", "AgentAuthDiscovery", _AGENTAUTH)},
    ),
    "GET /.well-known/oauth-authorization-server": Operation(
        "authorization_server_metadata",
        "OAuth metadata (RFC 8414)",
        answers={
            200: SuccessResponse(
                "May be cached for 300 s.", "AuthorizationServerMetadata", _METADATA
            )
        },
        description="`/v1/tokens` is not an OAuth token endpoint and is not listed as one.",
    ),
    "GET /.well-known/jwks.json": Operation(
        "token_keys",
        "The keys that sign tokens",
        answers={200: SuccessResponse("May be cached for 30 s.", "Jwks", STORY["token_keys"])},
        description=(
            "The next one, the active one, and retired ones that a token still in force may need. "
            "A new key is listed here for 130 s before it signs."
        ),
    ),
    "GET /v1/schema/": Operation(
        "openapi",
        "This description, in OpenAPI 3.1",
        answers={200: SuccessResponse("May be cached for 300 s.", "OpenApi")},
        description="`/docs/` shows it to people.",
    ),
}
