"""Where scenarios begin: one caller of each kind, and per operation a call that would succeed."""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from django.db import transaction
from django.test import Client

from agentauth.openapi.operations import FORM, JSON
from agentauth.protocol.capability import parse_action
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey
from approvals.tests.cast import Person, invited
from audit.log.sequencer import sequence_until_empty
from audit.models import Leaf
from audit.witness.checkpoints import checkpoint_log
from kms.models import Key
from kms.services import ensure_key
from registry.models import Grant
from registry.services.service_providers import create_service_provider
from registry.tests.cast import (
    PAY,
    READ_CALENDAR,
    TESTER,
    AgentClient,
    approved,
    basic,
    enrolled,
    issue,
    pending,
)
from verifier.models import Confirmation
from verifier.services.confirmations import request_confirmation

NOBODY, AGENT, PROVIDER = "nobody", "agent", "provider"
PAYMENT: dict[str, Any] = {
    "type": "transact",
    "resource": "payments",
    "amount": {"value": "60.00", "currency": "EUR"},
}


@dataclass(frozen=True)
class Call:
    """One request and its caller; `signer` if the stage's own agent does not sign."""

    method: str
    path: str
    body: bytes = b""
    media_type: str = JSON
    by: str = AGENT
    query: str = ""
    key: str = ""
    signer: AgentClient | None = None
    secret: str = ""
    # Sent instead of a good proof.
    proof: str = ""
    nonce: str = ""
    accept: str = JSON
    host: str = "localhost:8000"


def of(method: str, path: str, body: object = None, **more: Any) -> Call:
    """A call with a JSON body, if any."""
    return Call(method, path, b"" if body is None else json.dumps(body).encode(), **more)


class Stage:
    """An agent of Alice's with a grant, the grant's service provider, Alice with her passkey."""

    def __init__(
        self,
        *,
        name: str = "Acme",
        audience: str = "http://127.0.0.1:8002",
        email: str = "alice@example.org",
    ) -> None:
        self.now = datetime.now(UTC)
        for purpose in Key.Purpose:
            ensure_key(purpose=purpose, actor=TESTER, now=self.now)
        self.person: Person = invited(email, "Alice", now=self.now)
        self.alice = self.person.human
        self.agent: AgentClient = enrolled(self.alice, now=self.now)
        self.provider, self.secret = create_service_provider(
            name=name,
            audience=audience,
            allowed=("read:calendar", "transact:payments", "write:files"),
            actor=TESTER,
            now=self.now,
        )
        self.sign_the_log()

    def sign_the_log(self) -> None:
        """Do what the scheduled jobs do."""
        sequence_until_empty(now=self.now)
        checkpoint_log(now=self.now)

    def logged(self) -> str:
        """The id of an event that the newest checkpoint covers."""
        return str(Leaf.objects.get(leaf_index=0).event_id)

    def pending(self, **terms: Any) -> Grant:
        return pending(self.agent, self.provider, now=self.now, **terms)

    def approved(self, **terms: Any) -> Grant:
        return approved(self.agent, self.provider, now=self.now, **terms)

    def token(self, grant: Grant | None = None) -> str:
        return str(issue(self.agent, grant or self.approved()).json()["access_token"])

    def confirmation(self) -> Confirmation:
        grant = self.approved(
            capabilities=[PAY], envelope={"confirm_above": {"value": "50.00", "currency": "EUR"}}
        )
        with transaction.atomic():
            found, _ = request_confirmation(
                grant=grant,
                action=parse_action(PAYMENT),
                key="order-1",
                may_create=True,
                actor=TESTER,
                now=self.now,
            )
        assert found is not None
        return Confirmation.objects.get(pk=found)

    def question(self, token: str = "", **more: Any) -> dict[str, Any]:
        """A verify body."""
        token = token or self.token()
        url = f"{self.provider.audience}/events"
        proof = make_proof(
            self.agent.signer,
            method="POST",
            url=url,
            iat=int(datetime.now(UTC).timestamp()),
            jti=secrets.token_urlsafe(16),
            access_token=token,
        )
        return {"token": token, "proof": proof, "method": "POST", "url": url} | more

    def send(self, call: Call, **changes: Any) -> Any:
        """The answer through all middleware, URLs and views; an exception becomes an answer too."""
        call = replace(call, **changes)
        client = Client(SERVER_NAME="localhost", SERVER_PORT="8000", raise_request_exception=False)
        headers = {"Accept": call.accept, "Host": call.host} | (
            {"Idempotency-Key": call.key} if call.key else {}
        )
        if call.by == AGENT:
            signer = call.signer or self.agent
            more = {"nonce": call.nonce} if call.nonce else {}
            headers["DPoP"] = call.proof or signer.proof(call.method, call.path, call.body, **more)
        elif call.by == PROVIDER:
            headers |= basic(self.provider, call.secret or self.secret)
        else:
            # A session gives no rights at the API, but the middleware still reads it.
            client = self.person.client
            client.raise_request_exception = False
        return client.generic(
            call.method,
            call.path + call.query,
            call.body,
            content_type=call.media_type,
            headers=headers,
        )


def form(**parameters: str) -> bytes:
    return urlencode(parameters).encode()


def newcomer(stage: Stage) -> Call:
    one = AgentClient()
    return of("POST", "/v1/agents", {"manifest": one.manifest()}, signer=one)


def receipt(stage: Stage) -> Call:
    grant = stage.pending()
    assert stage.person.approve(grant).status_code == 200
    return of("GET", f"/v1/grants/{grant.pk}/receipt")


def wish(stage: Stage) -> Call:
    return of(
        "POST",
        "/v1/grants",
        {"service_provider": stage.provider.slug, "capabilities": [READ_CALENDAR]},
    )


def key_change(stage: Stage) -> Call:
    return of(
        "POST",
        "/v1/agents/me/key",
        {"new_key": stage.agent.key_change(LocalSigner(PrivateKey.generate()))},
    )


def batch(stage: Stage, *questions: object) -> Call:
    return of(
        "POST", "/v1/verify/batch", {"requests": list(questions) or [stage.question()]}, by=PROVIDER
    )


# Operation → a call that succeeds.
GOOD: dict[str, Callable[[Stage], Call]] = {
    "GET /.well-known/agentauth": lambda _: of("GET", "/.well-known/agentauth", by=NOBODY),
    "GET /.well-known/oauth-authorization-server": lambda _: of(
        "GET", "/.well-known/oauth-authorization-server", by=NOBODY
    ),
    "GET /.well-known/jwks.json": lambda _: of("GET", "/.well-known/jwks.json", by=NOBODY),
    "GET /v1/schema/": lambda _: of("GET", "/v1/schema/", by=NOBODY),
    "GET /v1/service-providers/{reference}": lambda s: of(
        "GET", f"/v1/service-providers/{s.provider.slug}"
    ),
    "POST /v1/agents": newcomer,
    "GET /v1/agents/me": lambda _: of("GET", "/v1/agents/me"),
    "DELETE /v1/agents/me": lambda _: of("DELETE", "/v1/agents/me"),
    "POST /v1/agents/me/manifest": lambda s: of(
        "POST", "/v1/agents/me/manifest", {"manifest": s.agent.manifest(later=5)}
    ),
    "POST /v1/agents/me/key": key_change,
    "POST /v1/grants": wish,
    "GET /v1/grants": lambda _: of("GET", "/v1/grants"),
    "GET /v1/grants/{grant_id}": lambda s: of("GET", f"/v1/grants/{s.pending().pk}"),
    "POST /v1/grants/{grant_id}/withdraw": lambda s: of(
        "POST", f"/v1/grants/{s.pending().pk}/withdraw"
    ),
    "POST /v1/grants/{grant_id}/revoke": lambda s: of(
        "POST", f"/v1/grants/{s.approved().pk}/revoke"
    ),
    "GET /v1/grants/{grant_id}/receipt": receipt,
    "POST /v1/tokens": lambda s: of("POST", "/v1/tokens", {"grant_id": str(s.approved().pk)}),
    "POST /v1/revoke": lambda s: Call("POST", "/v1/revoke", form(token=s.token()), FORM),
    "POST /v1/introspect": lambda s: Call(
        "POST", "/v1/introspect", form(token=s.token()), FORM, PROVIDER
    ),
    "POST /v1/verify": lambda s: of("POST", "/v1/verify", s.question(), by=PROVIDER),
    "POST /v1/verify/batch": batch,
    "GET /v1/confirmations": lambda _: of("GET", "/v1/confirmations"),
    "GET /v1/confirmations/{confirmation_id}": lambda s: of(
        "GET", f"/v1/confirmations/{s.confirmation().pk}"
    ),
    "GET /v1/audit/events": lambda _: of("GET", "/v1/audit/events"),
    "GET /v1/audit/checkpoint": lambda _: of("GET", "/v1/audit/checkpoint", by=NOBODY),
    "GET /v1/audit/proof/inclusion": lambda s: of(
        "GET", "/v1/audit/proof/inclusion", by=NOBODY, query=f"?event={s.logged()}"
    ),
    "GET /v1/audit/proof/consistency": lambda _: of(
        "GET", "/v1/audit/proof/consistency", by=NOBODY, query="?first=1&second=2"
    ),
    "GET /v1/audit/proof/bundle": lambda s: of(
        "GET", "/v1/audit/proof/bundle", by=NOBODY, query=f"?event={s.logged()}"
    ),
    "GET /v1/audit/tile/entries/{tile}": lambda _: of(
        "GET", "/v1/audit/tile/entries/000.p/1", by=NOBODY
    ),
    "GET /v1/audit/tile/{level}/{tile}": lambda _: of("GET", "/v1/audit/tile/0/000.p/1", by=NOBODY),
}
