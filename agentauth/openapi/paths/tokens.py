"""Tokens: issue, revoke, introspect."""

from collections.abc import Mapping
from typing import Final

from agentauth.openapi.example_values import ID, STORY
from agentauth.openapi.operations import FORM, Body, Operation, SuccessResponse

_TOKEN: Final = {
    "access_token": STORY["token"],
    "token_type": "DPoP",
    "expires_in": 900,
    "grant_id": ID["grant"],
}
_TOLD: Final = (
    "scope", "client_id", "sub", "aud", "iss", "exp", "iat", "jti", "cnf", "authorization_details",
    "verify",
)  # fmt: skip
_INTROSPECTION: Final = {
    "active": True,
    "token_type": "DPoP",
    **{name: STORY["claims"][name] for name in _TOLD},
}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "POST /v1/tokens": Operation(
        "issue_token",
        "Get an access token for a grant",
        {
            201: SuccessResponse(
                "Valid for at most 15 minutes; bound to the agent's key.", "TokenAnswer", _TOKEN
            )
        },
        "Everything in the token comes from the grant. A repeated call with the same "
        "`Idempotency-Key` signs the stored claims again. Section 7.",
        body=Body("TokenRequest", {"grant_id": ID["grant"]}),
        errors=["invalid_grant", "idempotency_expired"],
        keyed=True,
    ),
    "POST /v1/revoke": Operation(
        "revoke_token",
        "Revoke a token (RFC 7009)",
        {200: SuccessResponse("Also if the token is unknown or another caller's.")},
        "Called by the agent, or by the service provider that the token is for. Form-encoded.",
        body=Body("TokenParameter", {"token": STORY["token"]}, FORM),
    ),
    "POST /v1/introspect": Operation(
        "introspect_token",
        "The claims of a token, if it is active (RFC 7662)",
        {
            200: SuccessResponse(
                "An active token is not a permission: ask verify.", "Introspection", _INTROSPECTION
            )
        },
        "Called by the service provider that the token is for. If a token is forged, ended or "
        "another caller's, `active` is false and the answer has nothing else.",
        body=Body("TokenParameter", {"token": STORY["token"]}, FORM),
    ),
}
