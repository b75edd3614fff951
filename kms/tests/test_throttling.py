"""Throttling by a key service is not an outage and causes few retries, with every client."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import pytest
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.services import SYSTEM
from kms.backends import backend_calls, create
from kms.services import rotate_key, signer
from kms.tests import fake_awskms
from kms.tests.fake_vault import KEY, URI, FakeVault, encode_signature
from tests import gcp_kms

pytestmark = pytest.mark.django_db
ISSUANCES = 60


@dataclass
class Service:
    """A service with a key: a counter of the signatures asked for, and a switch for throttling."""

    uri: str
    asked: Callable[[], int]
    throttle: Callable[[bool], None]


@pytest.fixture
def awskms_service(aws: pytest.MonkeyPatch) -> Iterator[Service]:
    fake = fake_awskms.FakeKms()
    sign, refused = fake.answers["Sign"], fake_awskms.refusal("ThrottlingException")

    def throttle(on: bool) -> None:
        fake.answers["Sign"] = refused if on else sign

    with fake_awskms.serving(fake) as url:
        aws.setenv("AWS_ENDPOINT_URL_KMS", url)
        yield Service(
            fake_awskms.URI,
            lambda: [operation for operation, _ in fake.asked].count("Sign"),
            throttle,
        )


@pytest.fixture
def gcpkms_service(gcpkms: gcp_kms.Service) -> Service:
    uri, _ = create(purpose="token")

    def throttle(on: bool) -> None:
        gcpkms.refusal = grpc.StatusCode.RESOURCE_EXHAUSTED if on else None

    return Service(uri, lambda: gcpkms.calls.count("AsymmetricSign"), throttle)


@pytest.fixture
def vault_service(fake_vault: type[FakeVault]) -> Service:
    asked: list[str] = []
    sign = fake_vault.do_POST

    def counted(self: FakeVault) -> None:
        asked.append(self.path)
        sign(self)

    def too_many(self: FakeVault) -> None:
        asked.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(429)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def throttle(on: bool) -> None:
        fake_vault.do_POST = too_many if on else counted  # type: ignore[method-assign]

    fake_vault.signature = staticmethod(lambda message: encode_signature(KEY.sign(message)))
    throttle(False)
    return Service(URI, lambda: len(asked), throttle)


@pytest.mark.parametrize("home", ["awskms", "gcpkms", "vault"])
def test_KM_2_throttling_causes_at_most_6_calls_for_5_tokens_no_outage(
    home: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    service: Service = request.getfixturevalue(f"{home}_service")
    monkeypatch.setattr(backend_calls, "BACKOFF_SECONDS", 0.001)
    now = timezone.now()
    rotate_key(purpose="token", actor=SYSTEM, now=now, uri=service.uri)
    backend_calls._callers.clear()
    before = service.asked()
    service.throttle(True)
    for issuances in range(1, ISSUANCES + 1):
        with pytest.raises(TemporarilyUnavailableError):
            signer(purpose="token", now=now).sign(b"m")
        assert issuances <= service.asked() - before <= 1.2 * issuances
    # The retry budget is used.
    assert service.asked() - before > ISSUANCES
    service.throttle(False)
    signer(purpose="token", now=now).sign(b"m")
