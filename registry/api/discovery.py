"""Discovery: public documents that name endpoints and features. Only what is served today."""

from dataclasses import fields
from typing import Any

from django.conf import settings
from django.utils import timezone
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agentauth.protocol.behavioural_envelope import DEFAULT_MAXIMA, Envelope
from agentauth.protocol.capability import TYPES
from kms.models import Key
from kms.services import introductions, public_jwks
from registry.services.log_keys import audit_vkeys

ALGORITHMS = ["EdDSA", "Ed25519", "ES256"]


class PublicView(APIView):
    """Public: no authentication, and the same answer for every caller."""

    authentication_classes = []
    permission_classes = [AllowAny]


class AgentAuthDiscoveryView(PublicView):
    """`GET /.well-known/agentauth`."""

    def get(self, request: Request) -> Response:
        return Response(agentauth_document(), headers={"Cache-Control": "public, max-age=30"})


class AuthorizationServerView(PublicView):
    """`GET /.well-known/oauth-authorization-server` (RFC 8414)."""

    def get(self, request: Request) -> Response:
        return Response(
            authorization_server_document(), headers={"Cache-Control": "public, max-age=300"}
        )


def agentauth_document() -> dict[str, Any]:
    """docs/protocol.md section 4."""
    base = settings.PUBLIC_URL
    return {
        "version": 1,
        "issuer": settings.ISSUER,
        "endpoints": {
            "agents": f"{base}/v1/agents",
            "grants": f"{base}/v1/grants",
            "tokens": f"{base}/v1/tokens",
            "revoke": f"{base}/v1/revoke",
            "verify": f"{base}/v1/verify",
            "verify_batch": f"{base}/v1/verify/batch",
            "introspect": f"{base}/v1/introspect",
            "confirmations": f"{base}/v1/confirmations",
            "service_providers": f"{base}/v1/service-providers",
            "audit_events": f"{base}/v1/audit/events",
            "audit_checkpoint": f"{base}/v1/audit/checkpoint",
            "audit_inclusion_proof": f"{base}/v1/audit/proof/inclusion",
            "audit_consistency_proof": f"{base}/v1/audit/proof/consistency",
            "audit_proof_bundle": f"{base}/v1/audit/proof/bundle",
            "audit_tiles": f"{base}/v1/audit/tile",
            "jwks": f"{base}/.well-known/jwks.json",
        },
        "capability_types": list(TYPES),
        "envelope": {
            "members": [member.name for member in fields(Envelope)],
            "maxima": DEFAULT_MAXIMA.to_json(),
        },
        "algorithms": ALGORITHMS,
        "receipt_jwks": public_jwks(purpose="receipt", now=timezone.now()),
        "audit_vkeys": audit_vkeys(),
        "key_introductions": {
            purpose: introductions(purpose=purpose) for purpose in Key.Purpose.values
        },
    }


def authorization_server_document() -> dict[str, Any]:
    """RFC 8414. `/v1/tokens` is not an OAuth token endpoint and is not named as one."""
    base = settings.PUBLIC_URL
    return {
        "issuer": settings.ISSUER,
        "jwks_uri": f"{base}/.well-known/jwks.json",
        "response_types_supported": [],
        "grant_types_supported": [],
        "revocation_endpoint": f"{base}/v1/revoke",
        "revocation_endpoint_auth_methods_supported": ["client_secret_basic"],
        "introspection_endpoint": f"{base}/v1/introspect",
        "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
        "dpop_signing_alg_values_supported": ALGORITHMS,
        "authorization_details_types_supported": ["agentauth"],
    }
