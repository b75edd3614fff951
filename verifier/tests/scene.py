"""An approved grant with its agent, human and service provider, and the rules of every refusal."""

import base64
import json
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import redis
from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey
from audit.models import Event
from audit.services import Actor
from kms.services import ensure_key
from kms.state_change_publisher import Subject, publish_change
from registry.models import Agent, Grant, Human, ServiceProvider, SpentProof, Token
from registry.services.tokens import issue_token, sign_issued
from tests import receipts
from tests.seed import seed
from verifier.models import AgentOperation, Confirmation, GrantLedger
from verifier.stores.redis_url import parse_redis_url

SYSTEM = Actor("system", "test")
READ = {"type": "read", "resource": "calendar"}
PAY = {
    "type": "transact",
    "resource": "payments",
    "max_amount": {"value": "500.00", "currency": "EUR"},
}
LOOK = {"type": "read", "resource": "calendar/work"}


def pay(value: str, **more: Any) -> dict[str, Any]:
    """The action of a payment."""
    return {
        "type": "transact",
        "resource": "payments",
        "amount": {"value": value, "currency": "EUR"},
        **more,
    }


def key() -> str:
    """A new idempotency key of an agent's operation."""
    return secrets.token_urlsafe(16)


# The client of a new scene: Django's own, or one that calls the lean endpoint
# (tests/endpoint_modes.py).
new_client: Callable[[], Client] = Client


@dataclass
class Scene:
    """The objects that `scene` made, and what their owners can do."""

    grant: Grant
    agent: Agent
    human: Human
    provider: ServiceProvider
    secret: str
    signer: LocalSigner
    pem: str
    client: Client = field(default_factory=lambda: new_client())  # noqa: PLW0108 — tests swap it
    # The event of the last refusal.
    denial: Event | None = None

    @property
    def url(self) -> str:
        return self.provider.audience + "/v1/things"

    def token(self) -> str:
        now = timezone.now()
        issued = issue_token(agent=self.agent, grant_id=str(self.grant.pk), actor=SYSTEM, now=now)
        return sign_issued(issued.claims, now)

    def proof(self, token: str, **more: Any) -> str:
        settings = {
            "method": "POST",
            "url": self.url,
            "iat": int(timezone.now().timestamp()),
            **more,
        }
        signer = settings.pop("signer", self.signer)
        settings.setdefault("jti", secrets.token_urlsafe(16))
        return make_proof(signer, access_token=token, **settings)

    def body(self, action: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """A request with a new token and a fresh proof, unless `more` brings its own."""
        body: dict[str, Any] = {
            "token": more.get("token") or self.token(),
            "method": "POST",
            "url": self.url,
        }
        body |= more
        body.setdefault("proof", self.proof(body["token"]))
        return body if action is None else body | {"action": action}

    def post(
        self, body: object, *, secret: str | None = None, call_key: str | None = None
    ) -> HttpResponse:
        """Send a request; `call_key` is the service provider's own Idempotency-Key."""
        credentials = f"{self.provider.pk}:{secret or self.secret}".encode()
        headers = {"Authorization": "Basic " + base64.b64encode(credentials).decode()}
        if call_key is not None:
            headers["Idempotency-Key"] = call_key
        return cast(
            "HttpResponse",
            self.client.post(
                "/v1/verify",
                data=body if isinstance(body, bytes) else json.dumps(body),
                content_type="application/json",
                headers=headers,
            ),
        )

    def ask(self, action: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Ask with a new request and return the answer, a yes or a no."""
        return self.answer(self.body(action, **more))

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send this request and return the answer, a yes or a no."""
        response = self.post(body)
        assert response.status_code == 200, response.content
        answer: dict[str, Any] = json.loads(response.content)
        return answer

    def pay(self, value: str, operation: str | None = None, **more: Any) -> dict[str, Any]:
        return self.ask(pay(value), idempotency_key=operation or key(), **more)

    def confirm(self, answer: dict[str, Any]) -> None:
        row = Confirmation.objects.get(pk=answer["confirmation_id"])
        receipts.confirm(row, self.human, actor=SYSTEM, now=timezone.now())


def scene(*capabilities: dict[str, Any], **envelope: Any) -> Scene:
    """A new grant with this envelope and these capabilities (by default reading the calendar)."""
    ensure_key(purpose="token", actor=SYSTEM, now=timezone.now())
    made = seed(capabilities=list(capabilities) or [READ], envelope=envelope)
    return Scene(
        grant=Grant.objects.get(pk=made["grant_id"]),
        agent=Agent.objects.get(pk=made["agent_id"]),
        human=Human.objects.get(pk=made["human_id"]),
        provider=ServiceProvider.objects.get(pk=made["client_id"]),
        secret=made["client_secret"],
        signer=LocalSigner(PrivateKey.from_pem(made["agent_pem"].encode())),
        pem=made["agent_pem"],
    )


def change(rows: QuerySet[Any], **values: Any) -> None:
    """Change rows in a way no service does, and publish the change as a service would."""
    subject = Subject(rows.model.__name__.lower())
    with transaction.atomic():
        for row in rows:
            publish_change(subject, row.pk, now=timezone.now())
        rows.update(**values)


def counters() -> list[Any]:
    """Everything a decision may consume."""
    return [
        # A row without any use exists only as a lock.
        list(GrantLedger.objects.exclude(uses=0, tat_us=None, spent={}).order_by("pk").values()),
        list(AgentOperation.objects.order_by("pk").values()),
        list(Confirmation.objects.filter(status="confirmed").order_by("pk").values()),
    ]


def verdict(answer: dict[str, Any]) -> str:
    """`valid`, or error and reason, such as `invalid_token/revoked`."""
    return "valid" if answer["valid"] else f"{answer['error']}/{answer.get('reason')}"


def latest_claims(place: Scene) -> dict[str, Any]:
    """The claims of the scene's newest token."""
    return dict(Token.objects.filter(grant=place.grant).latest("issued_at").claims)


def spent_proofs() -> int:
    """How many proofs are in the replay cache, which tests/endpoint_modes.py may move to Redis."""
    if not settings.REDIS_URL:
        return SpentProof.objects.count()
    [server] = parse_redis_url(settings.REDIS_URL).addresses
    # As the server's default user: the registry's may not look for keys.
    with redis.Redis(host=server.host, port=server.port) as client:
        return len(list(client.scan_iter(match="aa:*:p:*")))


class _Logged(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _logs() -> Iterator[list[str]]:
    handler = _Logged()
    logging.getLogger().addHandler(handler)
    try:
        yield handler.lines
    finally:
        logging.getLogger().removeHandler(handler)


def assert_refused(
    place: Scene,
    body: object,
    *,
    status: int = 200,
    secret: str | None = None,
    call_key: str | None = None,
) -> dict[str, Any]:
    """Send a request, assert U1 to U6 of the security cases for its refusal, return the body."""
    before, known = counters(), set(Event.objects.values_list("pk", flat=True))
    with _logs() as lines:
        response = place.post(body, secret=secret, call_key=call_key)
    # U1
    assert response.status_code == status, response.content
    answer: dict[str, Any] = json.loads(response.content)
    # U2
    assert len(response.content) <= 1024
    assert answer["error"]
    assert answer["error_description"]
    assert answer.get("valid", False) is False
    # U3
    assert counters() == before
    # U4
    place.denial = Event.objects.filter(outcome="denied").exclude(pk__in=known).get()
    # U5
    assert response["Cache-Control"] == "no-store"
    # U2, U6: neither the answer, the log nor the event contains anything reusable.
    if isinstance(body, dict):
        kept = [response.content.decode(), *lines, json.dumps(place.denial.data)]
        for name in ("token", "proof", "idempotency_key"):
            value = body.get(name)
            if isinstance(value, str) and len(value) > 8:
                assert not any(value in text for text in kept), name
    return answer


@pytest.fixture
def place(db: None) -> Scene:
    """A grant to read the calendar, without an envelope."""
    return scene()
