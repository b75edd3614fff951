"""The `gcpkms:` backend with Google's client over TLS: each answer is checked before it is used."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import AgentAuthError
from kms.backends import BackendError, BusyError, ThrottledError, create, open_signer, public_key
from kms.backends import gcpkms as backend
from tests.gcp_kms import HOST, RING, Kind, Service, State, service, spki, write_account

ROOT = Path(__file__).resolve().parents[2]
# `make campaign` makes the full number of signatures.
SIGNATURES = 10_000 if os.environ.get("CAMPAIGN") == "1" else 300

KEY = f"gcpkms:{RING}/cryptoKeys/mine/cryptoKeyVersions"


def version(of: Service, uri: str) -> Any:
    return of.keys[uri.removeprefix("gcpkms:")]


@pytest.mark.parametrize(
    "place",
    [
        "",
        "signing",
        RING.rpartition("/")[0],
        f"{RING}/cryptoKeys/k",
        f"{RING}:HSM",
        f"{RING}\n",
        f"/{RING}",
    ],
)
def test_backend_place_must_name_a_key_ring_before_any_call(
    gcpkms: Service, settings: Settings, place: str
) -> None:
    settings.KEY_BACKEND = f"gcpkms:{place}"
    with pytest.raises(BackendError, match="must name a key ring"):
        create(purpose="token")
    assert gcpkms.calls == []


@pytest.mark.parametrize(
    "uri",
    [
        f"gcpkms:{RING}",
        f"gcpkms:{RING}/cryptoKeys/mine",
        f"{KEY}/0",
        f"{KEY}/01",
        f"{KEY}/latest",
        f"{KEY}/1/",
        f"{KEY}/1\n",
        f"{KEY}/1?x",
        f"gcpkms:{RING}/cryptoKeys/../cryptoKeyVersions/1",
        f"gcpkms:{RING}:hsm/cryptoKeys/mine/cryptoKeyVersions/1",
    ],
)
def test_JK_20_only_the_name_of_one_key_version_is_an_address(gcpkms: Service, uri: str) -> None:
    with pytest.raises(BackendError, match="not the address"):
        public_key(uri)
    assert gcpkms.calls == []


def test_opening_asks_nothing_and_each_signature_is_one_call(gcpkms: Service) -> None:
    uri, public = create(purpose="token")
    gcpkms.calls.clear()
    signer = open_signer(uri, public)
    assert gcpkms.calls == []
    for _ in range(3):
        signer.sign(b"m")
    assert gcpkms.calls == ["AsymmetricSign"] * 3


def test_KM_7_many_signatures_in_DER_all_verify(gcpkms: Service, settings: Settings) -> None:
    settings.KEY_ALGORITHM = "ES256"
    uri, public = create(purpose="token")
    signer = open_signer(uri, public)

    def signed(number: int) -> bytes:
        message = number.to_bytes(4, "big")
        signature = signer.sign(message)
        public.verify(message, signature, alg="ES256")
        return signature

    with ThreadPoolExecutor(4) as pool:
        signatures = list(pool.map(signed, range(SIGNATURES)))
    assert {len(each) for each in signatures} == {64}


def replaced(field: str, value: Any) -> Callable[[Any], None]:
    """An answer with another value and its correct checksum."""

    def change(answer: Any) -> None:
        setattr(answer, field, value)
        if f"{field}_crc32c" in type(answer).meta.fields:
            text = value.encode() if isinstance(value, str) else value
            setattr(answer, f"{field}_crc32c", google_crc32c.value(text))

    return change


def flipped(field: str) -> Callable[[Any], None]:
    def change(answer: Any) -> None:
        setattr(answer, field, getattr(answer, field) ^ 1)

    return change


def unseen(answer: Any) -> None:
    answer.verified_data_crc32c = answer.verified_digest_crc32c = False


RSA = spki(rsa.generate_private_key(65537, 2048).public_key()).decode()
P384 = spki(ec.generate_private_key(ec.SECP384R1()).public_key()).decode()
P256 = spki(ec.generate_private_key(ec.SECP256R1()).public_key()).decode()
OTHER = f"{RING}/cryptoKeys/mine/cryptoKeyVersions/2"


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (replaced("name", OTHER), BackendError, "another version"),
        (replaced("name", ""), BackendError, "another version"),
        (replaced("pem", RSA), BackendError, "must be Ed25519 or P-256"),
        (replaced("pem", P384), BackendError, "must be Ed25519 or P-256"),
        (replaced("pem", P256), BackendError, "unsupported algorithm"),
        (replaced("pem", "-----BEGIN PUBLIC KEY-----\n"), BackendError, "unreadable"),
        (replaced("pem", ""), BackendError, "unreadable"),
        (replaced("algorithm", Kind.EC_SIGN_P256_SHA256), BackendError, "unsupported algorithm"),
        (flipped("pem_crc32c"), BusyError, "did not arrive"),
        (replaced("pem_crc32c", None), BusyError, "did not arrive"),
    ],
)
def test_an_odd_public_key_is_refused(
    gcpkms: Service, spoil: Callable[[Any], None], error: type[BackendError], says: str
) -> None:
    uri, _ = create(purpose="token")
    gcpkms.spoil = spoil
    with pytest.raises(BackendError, match=says) as refused:
        public_key(uri)
    assert type(refused.value) is error


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (replaced("name", OTHER), BackendError, "another version"),
        (replaced("signature", b""), BackendError, "unreadable|a key other than"),
        (replaced("signature", bytes(64)), BackendError, "unreadable|a key other than"),
        (flipped("signature_crc32c"), BusyError, "did not arrive"),
        (replaced("signature_crc32c", None), BusyError, "did not arrive"),
        (unseen, BusyError, "did not receive"),
    ],
)
def test_an_odd_signature_is_refused(
    gcpkms: Service,
    settings: Settings,
    algorithm: str,
    spoil: Callable[[Any], None],
    error: type[BackendError],
    says: str,
) -> None:
    settings.KEY_ALGORITHM = algorithm
    uri, public = create(purpose="token")
    signer = open_signer(uri, public)
    signer.sign(b"m")
    gcpkms.spoil = spoil
    with pytest.raises(BackendError, match=says) as refused:
        signer.sign(b"m")
    assert type(refused.value) is error


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
def test_a_signature_of_another_key_is_refused(
    gcpkms: Service, settings: Settings, algorithm: str
) -> None:
    settings.KEY_ALGORITHM = algorithm
    (uri, public), (other, _) = create(purpose="token"), create(purpose="token")
    signer = open_signer(uri, public)
    signer.sign(b"m")
    version(gcpkms, uri).private = version(gcpkms, other).private
    with pytest.raises(BackendError, match="a key other than"):
        signer.sign(b"m")


KINDS = {
    "RESOURCE_EXHAUSTED": ThrottledError,
    **dict.fromkeys(
        ["UNAVAILABLE", "INTERNAL", "ABORTED", "UNKNOWN", "DEADLINE_EXCEEDED", "CANCELLED"],
        BusyError,
    ),
    **dict.fromkeys(["PERMISSION_DENIED", "FAILED_PRECONDITION", "NOT_FOUND"], BackendError),
    **dict.fromkeys(["INVALID_ARGUMENT", "UNAUTHENTICATED", "UNIMPLEMENTED"], BackendError),
}


@pytest.mark.parametrize("status", KINDS)
def test_KM_2_KM_4_a_refusal_is_an_error_of_the_backend_that_names_no_host(
    gcpkms: Service, status: str
) -> None:
    uri, public = create(purpose="token")
    signer = open_signer(uri, public)
    signer.sign(b"m")
    gcpkms.refusal = grpc.StatusCode[status]
    gcpkms.calls.clear()
    for call in (
        lambda: signer.sign(b"m"),
        lambda: public_key(uri),
        lambda: create(purpose="token"),
    ):
        with pytest.raises(BackendError) as refused:
            call()
        assert type(refused.value) is KINDS[status]
        assert HOST not in str(refused.value)


@pytest.mark.parametrize("state", [State.DISABLED, State.DESTROY_SCHEDULED, State.DESTROYED])
def test_KM_4_a_version_that_is_disabled_or_to_be_destroyed_is_refused(
    gcpkms: Service, state: int
) -> None:
    uri, public = create(purpose="token")
    version(gcpkms, uri).state = state
    with pytest.raises(BackendError, match="FailedPrecondition"):
        public_key(uri)
    with pytest.raises(BackendError, match="FailedPrecondition"):
        open_signer(uri, public).sign(b"m")


def test_KM_1_slow_key_service_call_times_out_and_a_new_one_works(
    gcpkms: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, public = create(purpose="token")
    signer = open_signer(uri, public)
    signer.sign(b"m")
    before = backend._clients[os.getpid()]
    with monkeypatch.context() as patch:
        patch.setattr(backend, "TIMEOUT_SECONDS", 0.2)
        gcpkms.slow_seconds = 2
        with pytest.raises(BusyError, match="in time"):
            signer.sign(b"m")
    gcpkms.slow_seconds = 0
    public.verify(b"m", signer.sign(b"m"), alg="EdDSA")
    assert backend._clients[os.getpid()] is not before
    # The new connection is another one; other threads may still use the old one.
    *_, slow, fresh = gcpkms.callers
    assert slow != fresh


def test_KM_14_without_credentials_no_call_is_made_and_lookups_pause(
    gcpkms: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, public = create(purpose="token")
    signer = open_signer(uri, public)
    backend._clients.clear()
    gcpkms.calls.clear()
    with monkeypatch.context() as patch:
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/secret-name.json")
        with pytest.raises(BackendError, match="no credentials") as refused:
            signer.sign(b"m")
        assert "secret-name" not in str(refused.value)
    # The credentials exist now, but are not looked up yet.
    with pytest.raises(BackendError, match="no credentials"):
        signer.sign(b"m")
    assert gcpkms.calls == []
    monkeypatch.setattr(backend, "_without_credentials_until", 0.0)
    assert len(signer.sign(b"m")) == 64


def test_KM_14_credentials_of_another_account_are_refused(
    gcpkms: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = int(gcpkms.env["GOOGLE_CLOUD_UNIVERSE_DOMAIN"].rpartition(":")[2])
    write_account(tmp_path / "other.json", rsa.generate_private_key(65537, 2048), port)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "other.json"))
    with pytest.raises(BackendError, match="Unauthenticated"):
        create(purpose="token")


def test_a_service_that_cannot_prove_its_name_is_sent_nothing(
    gcpkms: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # No root that this process trusts issued its certificate.
    with service(tmp_path) as stranger:
        for name in ("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "GOOGLE_APPLICATION_CREDENTIALS"):
            monkeypatch.setenv(name, stranger.env[name])
        with pytest.raises(BusyError, match="ServiceUnavailable"):
            create(purpose="token")
        assert stranger.calls == []


def test_threads_that_come_at_once_share_one_connection(gcpkms: Service) -> None:
    uri, public = create(purpose="token")
    signer = open_signer(uri, public)
    backend._clients.clear()
    together = threading.Barrier(8)

    def sign(_number: int) -> Any:
        together.wait()
        public.verify(b"m", signer.sign(b"m"), alg="EdDSA")
        return backend._clients[os.getpid()]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(sign, range(8))))) == 1


FORKS = """
import os, sys, time
from agentauth.protocol.keys import parse_jwk
from kms.backends.gcpkms import GcpkmsBackend
key = GcpkmsBackend().open(sys.argv[1])
public = key.public()
for _ in range(3):
    # gRPC can be forked only while none of its threads works; the last call may just have ended.
    time.sleep(0.2)
    child = os.fork()
    public.verify(b"m", key.sign(b"m", public.alg), alg=public.alg)
    if child == 0:
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_process_that_forks_after_it_has_signed_signs_in_both_halves(gcpkms: Service) -> None:
    """gunicorn forks, and the child must not use its parent's connection."""
    uri, _ = create(purpose="token")
    command = [sys.executable, "-c", FORKS, uri]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    assert gcpkms.calls.count("AsymmetricSign") == 6


def test_a_digest_is_what_a_P_256_key_is_sent(gcpkms: Service, settings: Settings) -> None:
    """A digest allows messages of any length; Ed25519 needs the message itself."""
    settings.KEY_ALGORITHM = "ES256"
    uri, public = create(purpose="token")
    message = b"m" * 100_000
    public.verify(message, open_signer(uri, public).sign(message), alg="ES256")
    assert len(hashlib.sha256(message).digest()) == 32
    with pytest.raises(AgentAuthError):
        public.verify(message + b"m", open_signer(uri, public).sign(message), alg="ES256")
