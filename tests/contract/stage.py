"""Where scenarios begin: one caller of each kind, and per operation a call that would succeed."""

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from django.db import transaction
from django.test import Client

from agentauth.openapi.operation_types import FORM, JSON
from agentauth.protocol.capability import parse_action
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey
from approvals.tests.cast import Person, invited
from audit.checkpoints.signing import checkpoint_log
from audit.log.sequencer import sequence_until_empty
from audit.models import Leaf
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
from tests.actors import payment_of
from tests.endpoints import BODIES, OPERATIONS, needed
from verifier.endpoint_paths import BATCH
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import request_confirmation

NOBODY, AGENT, PROVIDER = "nobody", "agent", "provider"
REGISTER = "POST /v1/agents"
PAYMENT = payment_of("60.00")


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

    def newcomer(self) -> str:
        self.stranger = AgentClient()
        return self.stranger.manifest()

    def renewal(self) -> str:
        return self.agent.manifest(later=5)

    def new_key(self) -> str:
        return self.agent.key_change(LocalSigner(PrivateKey.generate()))

    def wish(self) -> dict[str, Any]:
        return {"service_provider": self.provider.slug, "capabilities": [READ_CALENDAR]}

    def grant(self) -> str:
        return str(self.approved().pk)

    def signed(self) -> Grant:
        """A grant that Alice approved with her passkey."""
        grant = self.pending()
        assert self.person.approve(grant).status_code == 200
        return grant

    def parameter(self, name: str, operation: str) -> str:
        """A value of a parameter with which the operation succeeds."""
        grant: Callable[[Stage], Grant] = GRANTS.get(operation, Stage.pending)
        values: dict[str, Callable[[], str]] = {
            "grant_id": lambda: str(grant(self).pk),
            "confirmation_id": lambda: str(self.confirmation().pk),
            "reference": lambda: str(self.provider.slug),
            "event": self.logged,
            "first": lambda: "1",
            "second": lambda: "2",
            "level": lambda: "0",
            "tile": lambda: "000.p/1",
        }
        return values[name]()

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


# Operations on a grant that does not wait.
GRANTS: dict[str, Callable[..., Grant]] = {
    "POST /v1/grants/{grant_id}/revoke": Stage.approved,
    "GET /v1/grants/{grant_id}/receipt": Stage.signed,
}


def form(**parameters: str) -> bytes:
    return urlencode(parameters).encode()


def batch(stage: Stage, *questions: object) -> Call:
    return of("POST", BATCH, {"requests": list(questions) or [stage.question()]}, by=PROVIDER)


def good(stage: Stage, operation: str) -> Call:
    """A call of the operation that succeeds."""
    described = OPERATIONS[operation]
    method, path = operation.split(" ")
    query = {name: stage.parameter(name, operation) for name in needed(operation)}
    body, media = b"", JSON
    if operation in BODIES:
        [media], members = described["requestBody"]["content"], BODIES[operation](stage)
        body = form(**members) if media == FORM else json.dumps(members).encode()
    who = [name for each in described["security"] for name in each]
    return Call(
        method,
        re.sub(r"\{(\w+)\}", lambda found: stage.parameter(found[1], operation), path),
        body,
        media,
        by=AGENT if "proof" in who else PROVIDER if who else NOBODY,
        query=f"?{urlencode(query)}" if query else "",
        signer=stage.stranger if operation == REGISTER else None,
    )
