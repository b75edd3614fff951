"""What every key backend must keep, asked of each against the real thing."""

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.services import SYSTEM
from kms.backends import BackendError, create, open_signer
from kms.services import public_jwks, rotate_key, signer


@pytest.fixture(params=["file", "vault"])
def backend(request: pytest.FixtureRequest, settings: Settings) -> str:
    if request.param == "vault":
        request.getfixturevalue("vault")
    settings.KEY_BACKEND = request.param
    return str(request.param)


def test_a_key_signs_what_its_public_half_verifies(backend: str) -> None:
    uri, public = create(purpose="token")
    assert uri.startswith(f"{backend}:")
    opened = open_signer(uri)
    assert (opened.kid, opened.alg, opened.public) == (public.thumbprint, "EdDSA", public)
    for message in (b"m", b"m" * 4096):
        signature = opened.sign(message)
        assert len(signature) == 64
        public.verify(message, signature, alg="EdDSA")


def test_each_key_is_another(backend: str) -> None:
    assert create(purpose="token")[1] != create(purpose="token")[1]


def test_the_address_of_a_key_that_is_not_there_is_refused_at_the_latest_when_it_signs(backend: str) -> None:
    uri, _ = create(purpose="token")
    changed = {"file": uri.replace("token-", "other-"), "vault": uri[:-1] + ("0" if uri[-1] != "0" else "1")}
    with pytest.raises(BackendError):
        open_signer(changed[backend]).sign(b"m")


@pytest.mark.parametrize("address", ["", "../x", "a/../b", "transit/agentauth-token", "x" * 600, "a\n"])
def test_what_is_no_address_of_ours_is_refused(backend: str, address: str) -> None:
    with pytest.raises(BackendError):
        open_signer(f"{backend}:{address}")


@pytest.mark.django_db
def test_a_purpose_is_served_from_it(backend: str) -> None:
    now = timezone.now()
    key = rotate_key(purpose="token", actor=SYSTEM, now=now)
    signing = signer(purpose="token", now=now)
    signing.public.verify(b"m", signing.sign(b"m"), alg="EdDSA")
    assert [row["kid"] for row in public_jwks(purpose="token", now=now)["keys"]] == [key.kid]


@pytest.fixture
def away(vault: str, settings: Settings) -> str:
    """A key in Transit, and then nobody at its address."""
    uri, _ = create(purpose="token")
    settings.VAULT_ADDR = "http://127.0.0.1:1"
    return uri


def test_KM_14_a_server_that_is_away_is_an_error_of_the_backend_and_opening_asks_nothing(away: str) -> None:
    opened = open_signer(away)
    with pytest.raises(BackendError, match="did not do it"):
        opened.sign(b"m")


@pytest.mark.parametrize("token", ["", "wrong-token"])
def test_KM_14_a_wrong_token_is_an_error_that_does_not_show_it(
    vault: str, settings: Settings, token: str
) -> None:
    settings.VAULT_TOKEN = token
    with pytest.raises(BackendError) as refused:
        create(purpose="token")
    assert "wrong-token" not in str(refused.value)


@pytest.mark.django_db
def test_KM_14_a_purpose_whose_server_is_away_is_unavailable(vault: str, settings: Settings) -> None:
    now = timezone.now()
    rotate_key(purpose="token", actor=SYSTEM, now=now)
    settings.VAULT_ADDR = "http://127.0.0.1:1"
    with pytest.raises(TemporarilyUnavailableError):
        signer(purpose="token", now=now)
