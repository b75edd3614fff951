"""The worked example of docs/ has the bytes the code makes, and the real verify answers so."""

from datetime import timedelta
from typing import Any

import pytest

from agentauth.protocol.approval_receipt import verify_receipt
from agentauth.protocol.key_set import read_key_set
from agentauth.protocol.keys import LocalSigner
from agentauth.protocol.token import CertifiedKey
from audit.services import Actor
from kms.models import Key
from kms.tests.sealing import create
from registry.models import Agent, Grant, Human, ServiceProvider, Token
from tests import receipts
from verifier.requests import parse_verify_request
from verifier.services.web_verification import verify

from . import example
from .generate import AGENT, AT, AUDIENCE, ISSUER, NOW, TOKEN_KEY, identifier


def test_the_page_is_what_the_code_makes() -> None:
    assert example.PAGE.read_text("utf-8") == example.page()
    assert "{{" not in example.page()


def test_the_receipt_verifies_without_a_server() -> None:
    signer = example.RECEIPT_KEY
    found = verify_receipt(
        example.receipt(), keys={signer.kid: signer.public}, expected_issuer=ISSUER
    )
    assert found.consent_text == example.CONSENT


def test_published_key_set_with_a_certified_key_can_be_read() -> None:
    keys = read_key_set(example.certified_jwks(), expected_issuer=ISSUER)
    held = CertifiedKey(example.HELD_KEY.public, NOW, NOW + 3_600, 900)
    assert keys == {TOKEN_KEY.kid: TOKEN_KEY.public, example.HELD_KEY.kid: held}


@pytest.mark.django_db
def test_verify_gives_the_answer_of_the_page(settings: Any) -> None:
    settings.ISSUER = ISSUER
    publish(TOKEN_KEY)
    provider = granted()
    answer = verify(
        service_provider=provider,
        request=parse_verify_request(example.question()),
        actor=Actor("service_provider", str(provider.pk)),
        now=AT,
    )
    assert {**answer.body, "decision_id": identifier("decision")} == example.answer()


def publish(signer: LocalSigner) -> None:
    create(
        Key,
        kid=signer.kid,
        purpose="token",
        state="active",
        uri="file:example",
        algorithm=signer.alg,
        public_jwk=signer.public.jwk,
        published_at=AT,
        active_from=AT,
    )


def granted() -> ServiceProvider:
    """The rows of the story after its first seven steps."""
    human = Human.objects.create(
        id=identifier("human"), email="alice@example.org", name="Alice", created_at=AT
    )
    provider = create(
        ServiceProvider,
        id=identifier("service provider"),
        slug="acme",
        name="Acme",
        audience=AUDIENCE,
        created_at=AT,
    )
    agent = create(
        Agent,
        id=identifier("agent"),
        status="active",
        human=human,
        jkt=AGENT.public.thumbprint,
        public_jwk=AGENT.public.jwk,
        name=example.NAME,
        model_origin="models.example",
        manifest=example.manifest(),
        capabilities=example.CAPABILITIES,
        expires_at=AT + timedelta(days=90),
        created_at=AT,
    )
    terms = {"capabilities": example.CAPABILITIES, "envelope": example.ENVELOPE}
    grant = Grant.objects.create(
        id=identifier("grant"),
        agent=agent,
        service_provider=provider,
        requested_capabilities=example.CAPABILITIES,
        requested_envelope=example.ENVELOPE,
        requested_seconds=2_592_000,
        request_digest=b"",
        created_at=AT,
        expires_at=AT + timedelta(hours=1),
    )
    Grant.objects.filter(pk=grant.pk).update(
        status="approved", human=human, valid_until=example.VALID_UNTIL, decided_at=AT, **terms
    )
    signer = example.RECEIPT_KEY
    create(
        Key,
        kid=signer.kid,
        purpose="receipt",
        state=Key.State.ACTIVE,
        algorithm=signer.alg,
        public_jwk=signer.public.jwk,
        published_at=AT,
        active_from=AT,
    )
    receipts.store("approval", "approve", str(grant.pk), human, example.receipt(), AT)
    Token.objects.create(
        jti=identifier("token"),
        grant=grant,
        grant_version=1,
        jkt=AGENT.public.thumbprint,
        claims=example.token_claims(),
        issued_at=AT,
        expires_at=AT + timedelta(seconds=900),
    )
    # Read back, because the ids above are texts.
    return ServiceProvider.objects.get(pk=provider.pk)
