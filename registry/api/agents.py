"""Agents over HTTP: register, read oneself, replace the manifest or key, revoke oneself."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.conf import settings
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.protocol.agent_manifest import VerifiedManifest, verify_manifest
from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import InvalidEnrolmentCodeError, InvalidProofError
from agentauth.protocol.json_fields import text
from agentauth.protocol.key_change import VerifiedKeyChange, verify_key_change
from agentauth.protocol.keys import PrivateMemberError
from audit.fault_injection import fault_point
from registry.api.base_view import NativeView, empty
from registry.authentication import forget_caller, judge_nonce, read_proof, spend
from registry.models import Agent
from registry.services.agent_claims import claim_is_live, claim_url
from registry.services.agent_key_rotation import rotate_agent_key
from registry.services.agent_manifests import replace_manifest
from registry.services.agent_registration import register_agent
from registry.services.agents import revoke_agent
from registry.services.barred_keys import bar_disclosed_key
from registry.services.code_derivation import claim_codes
from registry.services.enrolment_codes import count_failure
from registry.services.idempotency import IdempotentAnswer

MAX_MANIFEST_CHARACTERS = 8 * 1024
MAX_CODE_CHARACTERS = 64


class RegisterView(NativeView):
    """`POST /v1/agents`. The proof is by the manifest's key, so only its holder can register it."""

    authentication_classes = []
    permission_classes = []
    # A bad proof is a bad request here: there is no registered caller yet.
    proof_error_status = 400

    def post(self, request: Request) -> Response:
        forget_caller(request)
        proof = read_proof(request, now=self.now)
        judge_nonce(request, proof, required=False, now=self.now)
        body = self.body(required=["manifest"], optional=["enrolment_code"])
        manifest = read_manifest(self, body)
        if proof.jkt != manifest.jkt:
            raise InvalidProofError(
                "The proof must be made with the manifest's key.", reason="signature"
            )
        spend(proof)
        code = body.get("enrolment_code")
        if code is not None:
            code = text(code, "enrolment_code", maximum=MAX_CODE_CHARACTERS)
        try:
            answer = self.once(lambda: self._register(manifest, code), caller=proof.jkt)
        except InvalidEnrolmentCodeError as error:
            error.recorded = count_failure(str(code), actor=self.actor, now=self.now)
            raise
        return Response(render_registration(answer), status=answer.status)

    def _register(self, manifest: VerifiedManifest, code: str | None) -> IdempotentAnswer:
        registered = register_agent(
            manifest=manifest, enrolment_code=code, actor=self.actor, now=self.now
        )
        agent = registered.agent
        body: dict[str, Any] = {
            "agent_id": str(agent.id),
            "status": agent.status_at(self.now),
            "jkt": agent.jkt,
            "expires_at": timestamp(agent.expires_at),
        }
        if claim_is_live(agent, self.now):
            # Only the number is stored: link and code are derived from it at rendering.
            body["claim_number"] = agent.claim_number
        return IdempotentAnswer(201 if registered.created else 200, body)


class OwnAgentView(NativeView):
    """`GET` and `DELETE /v1/agents/me`: any agent that is not revoked may read or revoke itself."""

    def get(self, request: Request) -> Response:
        self.refuse_query()
        return Response(render_agent(self.agent, self.now))

    def delete(self, request: Request) -> Response:
        self.body()
        self.once(self._revoke)
        return empty()

    def _revoke(self) -> IdempotentAnswer:
        revoke_agent(agent=self.agent, actor=self.actor, now=self.now)
        return IdempotentAnswer(204)


class ManifestView(NativeView):
    """`POST /v1/agents/me/manifest`: a renewed or changed one, signed by the current key."""

    def post(self, request: Request) -> Response:
        manifest = read_manifest(self, self.body(required=["manifest"]))
        answer = self.once(lambda: self._replace(manifest))
        return Response(answer.body)

    def _replace(self, manifest: VerifiedManifest) -> IdempotentAnswer:
        agent = replace_manifest(
            agent=self.agent, manifest=manifest, actor=self.actor, now=self.now
        )
        return IdempotentAnswer(200, render_agent(agent, self.now))


class KeyView(NativeView):
    """`POST /v1/agents/me/key`: the new key, signed by itself; the current one signs the proof."""

    def post(self, request: Request) -> Response:
        body = self.body(required=["new_key"])
        change = self._change(text(body["new_key"], "new_key", maximum=MAX_MANIFEST_CHARACTERS))
        answer = self.once(lambda: self._rotate(change))
        fault_point("rotate.before_delivery")
        return Response(answer.body)

    def _change(self, compact: str) -> VerifiedKeyChange:
        with barring(self):
            return verify_key_change(
                compact,
                expected_audience=settings.ISSUER,
                expected_agent_id=str(self.agent.pk),
                expected_old_jkt=self.agent.jkt,
                now=int(self.now.timestamp()),
            )

    def _rotate(self, change: VerifiedKeyChange) -> IdempotentAnswer:
        agent = rotate_agent_key(agent=self.agent, change=change, actor=self.actor, now=self.now)
        return IdempotentAnswer(200, render_agent(agent, self.now))


def read_manifest(view: NativeView, body: dict[str, Any]) -> VerifiedManifest:
    """The verified manifest of a body. Raises InvalidRequestError, ManifestError."""
    compact = text(body["manifest"], "manifest", maximum=MAX_MANIFEST_CHARACTERS)
    with barring(view):
        return verify_manifest(
            compact, expected_audience=settings.ISSUER, now=int(view.now.timestamp())
        )


@contextmanager
def barring(view: NativeView) -> Iterator[None]:
    """If what is read inside contains a private key, bar that key, then raise the refusal."""
    try:
        yield
    except PrivateMemberError as error:
        if error.derives is not None:
            bar_disclosed_key(key=error.derives, actor=view.actor, now=view.now)
        raise


def render_registration(answer: IdempotentAnswer) -> dict[str, Any]:
    """The stored answer plus the claim's link and code, which are derived and never stored."""
    body = dict(answer.body)
    number = body.pop("claim_number", None)
    if number is not None:
        agent_id = uuid.UUID(body["agent_id"])
        body |= {
            "claim_url": claim_url(agent_id, number),
            "claim_code": claim_codes(agent_id, number)[0],
        }
    # Sorted: the database returns the members of a stored answer in another order.
    return dict(sorted(body.items()))


def render_agent(agent: Agent, now: datetime) -> dict[str, Any]:
    """An agent as it sees itself."""
    return {
        "agent_id": str(agent.id),
        "status": agent.status_at(now),
        "jkt": agent.jkt,
        "name": agent.name,
        "description": agent.description,
        "model_origin": agent.model_origin,
        "capabilities": agent.capabilities,
        "created_at": timestamp(agent.created_at),
        "expires_at": timestamp(agent.expires_at),
    }
