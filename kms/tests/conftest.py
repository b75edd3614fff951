"""Fixtures of the kms tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from kms.backends import awskms, backend_calls
from kms.backends import gcpkms as gcpkms_backend
from kms.backends import pkcs11 as pkcs11_backend
from kms.tests import fake_vault as fake
from tests import gcp_kms, ministack, openbao, softhsm
from tests.http_server import serving


@pytest.fixture(autouse=True)
def key_directory(settings: Settings, tmp_path: Path) -> Path:
    """Give every test its own key directory."""
    settings.KEY_DIRECTORY = tmp_path / "keys"
    return tmp_path / "keys"


@pytest.fixture(autouse=True)
def _homes_as_at_the_start() -> None:
    """Forget the failures of key backends that an earlier test saw."""
    backend_calls._callers.clear()


@pytest.fixture(scope="session")
def openbao_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real server for all tests that use it."""
    with openbao.server(tmp_path_factory.mktemp("openbao")) as url:
        yield url


@pytest.fixture
def vault(settings: Settings, openbao_url: str) -> str:
    """Configure the real server; return its address."""
    settings.KEY_BACKEND = "vault"
    settings.VAULT = {"ADDR": openbao_url, "TOKEN": openbao.ROOT_TOKEN}
    return openbao_url


@pytest.fixture
def fake_vault(settings: Settings) -> Iterator[type[fake.FakeVault]]:
    """Configure a fake server; return its handler, which the test may change."""
    handler = type("Handler", (fake.FakeVault,), {})
    with serving(handler) as url:
        settings.KEY_BACKEND = "vault"
        settings.VAULT = {"ADDR": url, "TOKEN": "token"}
        yield handler


@pytest.fixture(scope="session")
def gcp_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gcp_kms.Service]:
    """One service for all tests that use it, because a process reads its root certificates once."""
    with gcp_kms.service(tmp_path_factory.mktemp("gcp")) as service:
        yield service


@pytest.fixture
def gcpkms(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, gcp_service: gcp_kms.Service
) -> gcp_kms.Service:
    """Configure a key ring, and point Google's client to the test service."""
    settings.KEY_BACKEND = f"gcpkms:{gcp_kms.RING}"
    for name, value in gcp_service.env.items():
        monkeypatch.setenv(name, value)
    gcp_service.well()
    gcpkms_backend._clients.clear()
    monkeypatch.setattr(gcpkms_backend, "_without_credentials_until", 0.0)
    return gcp_service


@pytest.fixture(scope="session")
def softhsm_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One token for all tests, in this process's environment, where the library reads it."""
    env = softhsm.token(tmp_path_factory.mktemp("softhsm"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", env["SOFTHSM2_CONF"])
        yield env


@pytest.fixture
def pkcs11(settings: Settings, softhsm_env: dict[str, str]) -> Iterator[str]:
    """Configure the token; return its label."""
    settings.KEY_BACKEND = f"pkcs11:{softhsm.LABEL}"
    settings.PKCS11 = {"MODULE": softhsm_env["PKCS11_MODULE"], "PIN": softhsm_env["PKCS11_PIN"]}
    yield softhsm.LABEL
    pkcs11_backend._module.stop()
    pkcs11_backend._module._refused.clear()


AWS_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "ATESTKEYID0123456789",
    "AWS_SECRET_ACCESS_KEY": "a-secret-key-of-tests-0123456789",
    "AWS_SESSION_TOKEN": "a-session-token-of-tests-0123456789",
}


@pytest.fixture
def aws(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[pytest.MonkeyPatch]:
    """Credentials in the environment and no cached clients. Another fixture sets the endpoint."""
    for name, value in AWS_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(awskms, "_clients", {})
    settings.KEY_BACKEND = "awskms:eu-central-1"
    yield monkeypatch
    for made in awskms._clients.values():
        made.client.close()


@pytest.fixture(scope="session")
def ministack_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real server for all tests that use it."""
    with ministack.server(tmp_path_factory.mktemp("ministack")) as url:
        yield url


@pytest.fixture
def aws_kms(aws: pytest.MonkeyPatch, ministack_url: str) -> str:
    """Configure the real server; return its address."""
    aws.setenv("AWS_ENDPOINT_URL_KMS", ministack_url)
    return ministack_url
