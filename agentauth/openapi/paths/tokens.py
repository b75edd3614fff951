"""Tokens: issue, revoke, introspect."""

from collections.abc import Mapping
from typing import Final

from agentauth.openapi.example_values import ID, STORY
from agentauth.openapi.operation_types import FORM, Body, Operation, SuccessResponse, see_section
from agentauth.protocol.token import INTROSPECTED_CLAIMS

_TOKEN: Final = {
    "access_token": STORY["token"],
    "token_type": "DPoP",
    "expires_in": 900,
    "grant_id": ID["grant"],
}
_INTROSPECTION: Final = {
    "active": True,
    "token_type": "DPoP",
    **{name: STORY["claims"][name] for name in INTROSPECTED_CLAIMS},
}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "POST /v1/tokens": Operation(
        "issue_token",
        "Get an access token for a grant",
        answers={
            201: SuccessResponse(
                "Valid for at most 15 minutes; bound to the agent's key.", "TokenAnswer", _TOKEN
            )
        },
        description=(
            "The capabilities and limits in the token come from the grant. A repeated call with "
            f"the same `Idempotency-Key` returns a token with the same claims. {see_section(7)}"
        ),
        body=Body("TokenRequest", {"grant_id": ID["grant"]}),
        errors=["invalid_grant", "idempotency_expired"],
        keyed=True,
    ),
    "POST /v1/revoke": Operation(
        "revoke_token",
        "Revoke a token (RFC 7009)",
        answers={
            200: SuccessResponse("Revoked, or the token is unknown or belongs to another caller.")
        },
        description=(
            "Called by the agent, or by the service provider that the token is for. Form-encoded."
        ),
        body=Body("TokenParameter", {"token": STORY["token"]}, FORM),
    ),
    "POST /v1/introspect": Operation(
        "introspect_token",
        "The claims of a token, if it is active (RFC 7662)",
        answers={
            200: SuccessResponse(
                "An active token is not a permission: ask verify.", "Introspection", _INTROSPECTION
            )
        },
        description=(
            "Called by the service provider that the token is for. If a token is forged, expired, "
            'revoked or issued for another provider, the answer is only `{"active": false}`.'
        ),
        body=Body("TokenParameter", {"token": STORY["token"]}, FORM),
    ),
}
