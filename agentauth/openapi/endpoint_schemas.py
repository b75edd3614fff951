"""JSON Schemas of what single endpoints read and answer; their parts are in `value_schemas.py`.

Answers stay open (no `additionalProperties: false`): clients must skip members they do not know.
The tests close them.
"""

from collections.abc import Mapping
from typing import Any, Final

from agentauth.openapi.catalogue_schemas import CATALOGUES
from agentauth.openapi.value_schemas import (
    SECONDS,
    URL,
    Schema,
    array,
    compact,
    integer,
    newest_first,
    nullable,
    one_of,
    record,
    ref,
    string,
)
from agentauth.openapi.verify_schemas import VERIFY
from agentauth.protocol.behavioural_envelope import DEFAULT_MAXIMA
from agentauth.protocol.capability import TYPES
from registry.api.agents import MAX_CODE_CHARACTERS, MAX_MANIFEST_CHARACTERS
from registry.api.discovery import ALGORITHMS
from registry.api.grants import MAX_REASON_CHARACTERS, MAX_REFERENCE_CHARACTERS
from registry.models import Agent, Grant
from registry.services.grant_requests import MAX_LIFE_SECONDS, MIN_LIFE_SECONDS

# Open on purpose: the kind of event says what is inside.
ANYTHING: Final[Schema] = {}
PAYLOAD: Final[Schema] = {"type": "object"}

ERROR: Final = record(
    "Less than 1 kB. `reason` is a more specific stable code. Further members are listed with "
    "their codes.",
    {
        "error": string("A stable code."),
        "error_description": string("One sentence for a person to read."),
    },
    {
        "reason": string("A stable code that is more specific than `error`."),
        "retry_after": integer("Seconds to wait before a retry, if known.", 1),
        "interval": integer("Seconds to wait between polls from now on.", 1),
    },
)

AGENTS: Final[Mapping[str, Schema]] = {
    "RegisterRequest": record(
        "",
        {"manifest": compact("The signed manifest (section 5).", MAX_MANIFEST_CHARACTERS)},
        {
            "enrolment_code": string(
                "Registers one agent for the human it was made for; valid for 15 minutes.",
                minLength=1,
                maxLength=MAX_CODE_CHARACTERS,
            )
        },
        closed=True,
    ),
    "ManifestRequest": record(
        "",
        {
            "manifest": compact(
                "A later manifest, signed with the current key.", MAX_MANIFEST_CHARACTERS
            )
        },
        closed=True,
    ),
    "KeyRequest": record(
        "",
        {"new_key": compact("A JWS signed with the new key (section 5).", MAX_MANIFEST_CHARACTERS)},
        closed=True,
    ),
    "Registration": record(
        "`claim_url` and `claim_code` are present while a claim is open.",
        {
            "agent_id": ref("Id"),
            "status": one_of(Agent.Status.values),
            "jkt": ref("Thumbprint"),
            "expires_at": ref("Time"),
        },
        {"claim_url": URL, "claim_code": string("The code that the human types.")},
    ),
    "Agent": record(
        "The agent that makes the call.",
        {
            "agent_id": ref("Id"),
            "status": one_of(Agent.Status.values),
            "jkt": ref("Thumbprint"),
            "name": string("The name that pages show.", minLength=1, maxLength=80),
            "description": string("", maxLength=500),
            "model_origin": string("A host name, which pages show as the agent's claim."),
            "capabilities": ref("Capabilities"),
            "created_at": ref("Time"),
            "expires_at": ref("Time"),
        },
    ),
    "ServiceProvider": record(
        "What an agent may know about a service provider before it requests a grant.",
        {
            "id": ref("Id"),
            "slug": string("A short name that can be used in place of the id."),
            "name": string(),
            "audience": URL,
            "allowed": array(
                string(), "`type:resource` or `custom:namespace.name:resource`.", maximum=64
            ),
            "require_nonce": {
                "type": "boolean",
                "description": "Whether proofs must carry a nonce.",
            },
        },
    ),
}

_TERMS: Final = {"capabilities": ref("Capabilities"), "envelope": ref("Envelope")}
GRANTS: Final[Mapping[str, Schema]] = {
    "GrantRequest": record(
        "",
        {
            "service_provider": string(
                "Id or slug.", minLength=1, maxLength=MAX_REFERENCE_CHARACTERS
            ),
            "capabilities": ref("Capabilities"),
        },
        {
            "envelope": ref("Envelope"),
            "reason": string(
                "Why the agent asks; the human reads it.", maxLength=MAX_REASON_CHARACTERS
            ),
            "lifetime_seconds": integer("Defaults to 30 days.", MIN_LIFE_SECONDS, MAX_LIFE_SECONDS),
        },
        closed=True,
    ),
    "GrantAccepted": record(
        "A request that waits for a human's decision.",
        {
            "grant_id": ref("Id"),
            "status": one_of(Grant.Status.values),
            "approval_url": URL,
            "expires_at": ref("Time"),
            "interval": integer("Seconds to wait between polls.", 1),
        },
    ),
    "Grant": record(
        "What the agent requested, what the human decided, and what was granted.",
        {
            "grant_id": ref("Id"),
            "status": one_of(Grant.Status.values),
            "grant_version": integer("Increases with every suspension.", 1),
            "service_provider": record(
                "", {"id": ref("Id"), "slug": string(), "name": string(), "audience": URL}
            ),
            "requested": record("", {**_TERMS, "lifetime_seconds": SECONDS}),
            "granted": nullable(record("", _TERMS)) | {"description": "Null until approved."},
            "narrowed": array(string(), "What the human changed."),
            "reason": string(),
            "created_at": ref("Time"),
            "expires_at": ref("Time")
            | {"description": "When the request expires: one hour after it was made."},
            "decided_at": nullable(ref("Time")),
            "deny_reason": nullable(string()),
            "valid_until": nullable(ref("Time")),
        },
        {"approval_url": URL, "interval": integer("Seconds to wait between polls.", 1)},
    ),
    "GrantPage": newest_first("Grant"),
    "Receipt": record(
        "The latest decision, sealed by the registry (section 6).",
        {
            "grant_id": ref("Id"),
            "decision": one_of(["approve", "deny"]),
            "decided_at": ref("Time"),
            "receipt": compact("The receipt.", 65_536),
        },
    ),
}

TOKENS: Final[Mapping[str, Schema]] = {
    "TokenRequest": record(
        "Everything in the token comes from the grant; the caller chooses nothing.",
        {
            "grant_id": string(
                "An unknown id is refused with `invalid_grant`.", minLength=1, maxLength=255
            )
        },
        closed=True,
    ),
    "TokenAnswer": record(
        "",
        {
            "access_token": compact("An RFC 9068 JWT (section 7)."),
            "token_type": one_of(["DPoP"]),
            "expires_in": SECONDS,
            "grant_id": ref("Id"),
        },
    ),
    "TokenParameter": record(
        "Other parameters are ignored.", {"token": string("The token.", minLength=1)}
    ),
    "Introspection": record(
        "RFC 7662. If the token is not active, whatever the reason, the answer has only `active`.",
        {"active": {"type": "boolean"}},
        {
            "token_type": one_of(["DPoP"]),
            "scope": string(),
            "client_id": ref("Id"),
            "sub": string(),
            "aud": URL,
            "iss": URL,
            "exp": integer("Seconds since 1970.", 0),
            "iat": integer("Seconds since 1970.", 0),
            "jti": ref("Id"),
            "cnf": record("", {"jkt": ref("Thumbprint")}),
            "authorization_details": array(
                record("", {"type": one_of(["agentauth"]), "capabilities": ref("Capabilities")})
            ),
            "verify": one_of(["online"]),
        },
    ),
}

AUDIT: Final[Mapping[str, Schema]] = {
    "Event": record(
        "One entry of the log. Ids, `token_jti` and `reason` are absent if they do not apply.",
        {
            "id": ref("Id"),
            "kind": string("`app.subject.past_tense`.", pattern=r"^[a-z_]+(?:[.][a-z_]+)+$"),
            "at": ref("Time"),
            "actor": record("", {"kind": string(), "id": string()}),
            "outcome": one_of(["success", "denied", "failed"]),
            "request_id": string(),
            "data": PAYLOAD
            | {
                "description": (
                    'Facts that depend on the kind. A personal member is `{"commitment": …}` '
                    "(section 9)."
                )
            },
            "salt": string("32 bytes in base64url, needed to compute the entry."),
            "leaf_index": nullable(
                integer("The event's number in the log; null until it has one.", 0)
            ),
            "openings": {
                "type": "object",
                "description": "Personal members by name, until they are erased.",
                "additionalProperties": record("", {"salt": string(), "value": ANYTHING}),
            },
        },
        {
            "agent_id": ref("Id"),
            "human_id": ref("Id"),
            "service_provider_id": ref("Id"),
            "grant_id": ref("Id"),
            "token_jti": string(),
            "reason": string(),
        },
    ),
    "EventPage": record(
        "In the order of the log. Events without a number come last.",
        {"results": array(ref("Event")), "next": nullable(string("A cursor for `after`."))},
    ),
    "Hash": string("32 bytes in base64.", pattern="^[A-Za-z0-9+/]{43}=$"),
    "InclusionProof": record(
        "A path from a leaf to a root (RFC 9162 section 2.1.3).",
        {
            "leaf_index": integer("The event's number.", 0),
            "tree_size": integer("The number of leaves in the tree.", 1),
            "leaf_hash": ref("Hash"),
            "audit_path": array(ref("Hash"), "From the leaf upward.", maximum=63),
            "root_hash": ref("Hash"),
        },
    ),
    "ConsistencyProof": record(
        "A path from one root to a later one (RFC 9162 section 2.1.4).",
        {
            "first": integer("The older size.", 1),
            "second": integer("The newer size.", 1),
            "consistency_path": array(ref("Hash"), maximum=64),
        },
    ),
    "CheckpointNote": string(
        "A signed note: origin, size, root, signatures (c2sp.org/tlog-checkpoint)."
    ),
    "LogProof": string(
        "A proof and the checkpoint it leads to, in one text (c2sp.org/tlog-proof)."
    ),
    "Bytes": string("Binary.", format="binary"),
}

_MAXIMA: Final = {name: integer("", 1) for name in DEFAULT_MAXIMA.to_json()}
ENDPOINTS: Final = (
    "agents",
    "grants",
    "tokens",
    "revoke",
    "verify",
    "verify_batch",
    "introspect",
    "service_providers",
    "confirmations",
    "audit_events",
    "audit_checkpoint",
    "audit_inclusion_proof",
    "audit_consistency_proof",
    "audit_proof_bundle",
    "audit_tiles",
    "jwks",
)
DISCOVERY: Final[Mapping[str, Schema]] = {
    "Jwk": record(
        "A public key (RFC 7517, 8037): Ed25519 has `x`, P-256 `x` and `y`.",
        {
            "kty": one_of(["OKP", "EC"]),
            "crv": one_of(["Ed25519", "P-256"]),
            "x": string("", pattern="^[A-Za-z0-9_-]{43}$"),
            "kid": string(),
            "use": one_of(["sig"]),
            "alg": one_of(["EdDSA", "ES256"]),
        },
        {
            "y": string("", pattern="^[A-Za-z0-9_-]{43}$"),
            "certificate": string("The key is valid only within this certificate (section 4)."),
        },
    ),
    "Jwks": record("A key set (RFC 7517).", {"keys": array(ref("Jwk"))}),
    "AgentAuthDiscovery": record(
        "`/.well-known/agentauth` (section 4).",
        {
            "version": {"const": 1},
            "issuer": URL,
            "endpoints": record("Name to URL.", dict.fromkeys(ENDPOINTS, URL)),
            "capability_types": array(one_of(TYPES)),
            "envelope": record("", {"members": array(string()), "maxima": record("", _MAXIMA)}),
            "algorithms": array(one_of(ALGORITHMS)),
            "receipt_jwks": ref("Jwks")
            | {"description": "All receipt keys; retired keys stay listed."},
            "audit_vkeys": array(
                string("", pattern="^[^ +]+[+][0-9a-f]{8}[+][A-Za-z0-9+/=]+$"),
                "The log's verifier keys (C2SP signed-note); retired keys stay listed.",
            ),
            "key_introductions": record(
                "Compact JWS in which each key of a purpose introduces the next one, oldest first.",
                dict.fromkeys(("token", "audit", "receipt"), array(string())),
            ),
        },
    ),
    "AuthorizationServerMetadata": record(
        "`/.well-known/oauth-authorization-server` (RFC 8414).",
        {
            "issuer": URL,
            "jwks_uri": URL,
            "response_types_supported": array(string(), maximum=0),
            "grant_types_supported": array(string(), maximum=0),
            "revocation_endpoint": URL,
            "revocation_endpoint_auth_methods_supported": array(one_of(["client_secret_basic"])),
            "introspection_endpoint": URL,
            "introspection_endpoint_auth_methods_supported": array(one_of(["client_secret_basic"])),
            "dpop_signing_alg_values_supported": array(one_of(ALGORITHMS)),
            "authorization_details_types_supported": array(one_of(["agentauth"])),
        },
    ),
    "OpenApi": record(
        "This document (OpenAPI 3.1).",
        {"openapi": string(), "info": PAYLOAD, "paths": PAYLOAD, "components": PAYLOAD},
        dict.fromkeys(("jsonSchemaDialect", "servers", "tags"), ANYTHING),
    ),
}

ANSWERS: Final[Mapping[str, Any]] = {
    "Error": ERROR,
    **AGENTS,
    **CATALOGUES,
    **GRANTS,
    **TOKENS,
    **VERIFY,
    **AUDIT,
    **DISCOVERY,
}
