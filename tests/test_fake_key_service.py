"""The key service that benchmarks sign with behaves like OpenBao towards the registry's client."""

import base64
import json

import httpx
import pytest
from pytest_django.fixtures import Settings

from benchmarks.fake_key_service import KeyService
from benchmarks.issuance import key_service
from kms.backends import vault

pytestmark = pytest.mark.flow


def test_KM_3_the_fake_key_service_is_one_to_the_registry_s_own_client(settings: Settings) -> None:
    message = b"a token"
    with key_service(0, 1) as (url, _):
        settings.VAULT = {"ADDR": url, "TOKEN": "any"}
        home = vault.VaultBackend()
        key = home.open(home.create(place="", purpose="token", algorithm="EdDSA"))
        key.public().verify(message, key.sign(message, "EdDSA"), alg="EdDSA")
        counts = httpx.get(f"{url}/counts", timeout=30).json()
        assert counts == {"token read": 1, "token signed": 1}


def test_KM_3_fake_key_service_refuses_calls_above_its_rate() -> None:
    now = 100.0
    service = KeyService(3, lambda: now)
    name = "agentauth-token-0197"
    service.answer("POST", f"/v1/transit/keys/{name}", b'{"type": "ed25519"}')
    asked = json.dumps({"input": base64.b64encode(b"a token").decode()}).encode()

    def sign(times: int) -> list[int]:
        return [service.answer("POST", f"/v1/transit/sign/{name}", asked)[0] for _ in range(times)]

    assert sign(5) == [200, 200, 200, 429, 429]
    now = 100.9
    assert sign(1) == [429]
    now = 101.0
    assert sign(4) == [200, 200, 200, 429]
    assert service.counts == {"token signed": 6, "token refused": 4}


def test_fake_key_service_signs_in_the_first_second_of_its_clock() -> None:
    service, name = KeyService(1, lambda: 0.5), "agentauth-token-0197"
    service.answer("POST", f"/v1/transit/keys/{name}", b'{"type": "ed25519"}')
    asked = json.dumps({"input": base64.b64encode(b"a token").decode()}).encode()
    path = f"/v1/transit/sign/{name}"
    assert [service.answer("POST", path, asked)[0] for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"input": 1}', b'{"input": "a"}'])
@pytest.mark.parametrize("operation", ["keys", "sign"])
def test_fake_key_service_answers_a_body_it_cannot_read(operation: str, body: bytes) -> None:
    service, name = KeyService(0), "agentauth-token-0197"
    service.answer("POST", f"/v1/transit/keys/{name}", b'{"type": "ed25519"}')
    status, answer = service.answer("POST", f"/v1/transit/{operation}/{name}", body)
    assert (status, answer) == (400, {"errors": ["the body is not the JSON of this call"]})
