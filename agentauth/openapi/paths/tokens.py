"""Tokens: issue, revoke, introspect."""

from collections.abc import Mapping
from typing import Final

from agentauth.openapi.operations import FORM, Answer, Body, Operation
from agentauth.openapi.story import ID, STORY

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
        "A token of a grant",
        {201: Answer("At most 15 minutes; bound to the agent's key.", "TokenAnswer", _TOKEN)},
        "Everything in the token comes from the grant. A repeated call with the same "
        "`Idempotency-Key` signs the stored "
        "claims once more. Section 7.",
        body=Body("TokenRequest", {"grant_id": ID["grant"]}),
        errors=["invalid_grant", "idempotency_expired"],
        keyed=True,
    ),
    "POST /v1/revoke": Operation(
        "revoke_token",
        "End a token (RFC 7009)",
        {200: Answer("Also for a token that is unknown or another's.")},
        "By the agent, or by the service provider it is for. Form-encoded.",
        body=Body("TokenParameter", {"token": STORY["token"]}, FORM),
    ),
    "POST /v1/introspect": Operation(
        "introspect_token",
        "What a token says, if it is good (RFC 7662)",
        {
            200: Answer(
                "Active is no permission: that is for verify.", "Introspection", _INTROSPECTION
            )
        },
        "By the service provider it is for. A token that is forged, ended or another's: "
        "`active` is false, and nothing more.",
        body=Body("TokenParameter", {"token": STORY["token"]}, FORM),
    ),
}
