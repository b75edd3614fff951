"""How the `gcpkms:` backend makes a key: its kind and place, waiting, and naming unused ones."""

import time
from typing import Any

import pytest
from google.cloud.kms_v1 import CryptoKey, CryptoKeyVersion, ProtectionLevel
from pytest_django.fixtures import Settings

from agentauth.protocol.keys import Algorithm
from kms.backends import BackendError, create, open_signer
from kms.backends import gcpkms as backend
from kms.tests.test_gcpkms_backend import version
from tests.gcp_kms import RING, Kind, Service, State


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("EdDSA", Kind.EC_SIGN_ED25519), ("ES256", Kind.EC_SIGN_P256_SHA256)]
)
@pytest.mark.parametrize(
    ("suffix", "level"), [("", ProtectionLevel.SOFTWARE), (":hsm", ProtectionLevel.HSM)]
)
def test_a_key_is_made_of_the_kind_and_where_it_was_asked_for(
    gcpkms: Service, settings: Settings, algorithm: Algorithm, kind: int, suffix: str, level: int
) -> None:
    settings.KEY_ALGORITHM, settings.KEY_BACKEND = algorithm, f"gcpkms:{RING}{suffix}"
    uri, public = create(purpose="receipt")
    assert uri.startswith(f"gcpkms:{RING}/cryptoKeys/agentauth-receipt-")
    assert (version(gcpkms, uri).kind, version(gcpkms, uri).protection) == (kind, level)
    signer = open_signer(uri, public)
    public.verify(b"message", signer.sign(b"message"), alg=algorithm)


def test_a_key_is_named_once_it_can_sign(gcpkms: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_POLL_SECONDS", 0.01)
    gcpkms.polls = 3
    uri, _ = create(purpose="token")
    assert version(gcpkms, uri).state == State.ENABLED
    assert gcpkms.calls.count("GetCryptoKeyVersion") == 4


def test_a_key_that_is_made_slowly_is_not_given_up_on(
    gcpkms: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "TIMEOUT_SECONDS", 0.5)
    gcpkms.spoil = lambda answer: time.sleep(0.7 if isinstance(answer, CryptoKey) else 0)
    uri, _ = create(purpose="token")
    assert version(gcpkms, uri).state == State.ENABLED


def test_failed_poll_of_a_new_key_is_retried_and_finally_names_the_key(
    gcpkms: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_POLL_SECONDS", 0.01)
    times = [3]

    def fails(answer: Any) -> None:
        if isinstance(answer, CryptoKeyVersion) and times[0]:
            times[0] -= 1
            raise RuntimeError("the service's own fault")

    gcpkms.spoil = fails
    uri, _ = create(purpose="token")
    assert version(gcpkms, uri).state == State.ENABLED
    assert gcpkms.calls.count("GetCryptoKeyVersion") == 4
    times[0] = 1_000_000
    monkeypatch.setattr(backend, "ENABLED_SECONDS", 0.05)
    with pytest.raises(
        BackendError, match=r"agentauth-token-.* was created but is not readable .*destroy it"
    ):
        create(purpose="token")


def test_a_key_that_is_never_ready_or_was_not_made_is_said_to_be_so(
    gcpkms: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(backend, "ENABLED_SECONDS", 0.05)
    gcpkms.polls = 1_000_000
    with pytest.raises(BackendError, match=r"agentauth-token-.* PENDING_GENERATION; destroy it"):
        create(purpose="token")

    def failed(answer: Any) -> None:
        if isinstance(answer, CryptoKeyVersion):
            answer.state = State(State.GENERATION_FAILED)

    monkeypatch.setattr(backend, "ENABLED_SECONDS", 3600)
    gcpkms.polls, gcpkms.spoil = 0, failed
    with pytest.raises(BackendError, match="GENERATION_FAILED"):
        create(purpose="token")
