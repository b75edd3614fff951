"""The contract of every key backend, tested on the real thing.

A new backend is one fixture here, `<scheme>_home`, and one line in `HOMES_UNDER_TEST`.
"""

import contextlib
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import boto3
import hvac
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from django.utils import timezone
from pkcs11 import Attribute
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.keys import Algorithm, PrivateKey
from audit.services import SYSTEM
from kms.backends import BACKENDS, BackendError, BusyError, awskms, create, open_signer, public_key
from kms.backends import gcpkms as gcpkms_backend
from kms.backends import pkcs11 as pkcs11_backend
from kms.backends.key_backend_setting import PLACES
from kms.services import public_jwks, rotate_key, signer
from kms.tests.conftest import AWS_CREDENTIALS
from tests import gcp_kms, openbao, softhsm

# Scheme, and after a hyphen a way to use it, to the algorithms it signs with.
HOMES_UNDER_TEST: Final[dict[str, tuple[Algorithm, ...]]] = {
    "awskms": ("EdDSA", "ES256"),
    "file": ("EdDSA", "ES256"),
    "file-encrypted": ("EdDSA", "ES256"),
    "gcpkms": ("EdDSA", "ES256"),
    "pkcs11": ("EdDSA", "ES256"),
    "vault": ("EdDSA", "ES256"),
}
# What a machine may lack, by the marker of tests that need it.
MARKS: Final = {"pkcs11": [pytest.mark.softhsm]}
# CAMPAIGN=1 makes the full number of signatures.
SIGNATURES: Final = 10_000 if os.environ.get("CAMPAIGN") == "1" else 200
# One in 128 signatures has a leading zero in a half, so this many almost surely include one.
MOST_SIGNATURES: Final = 10_000
TOO_LONG: Final = 60_000
DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
SHARED: Final = ("", "../x", "a/../b", "//", "%2e%2e/x", "x" * 600, "a\n", "é", "\0")


@dataclass(frozen=True)
class Home:
    """A backend, and what a test cannot derive. Its fixture has configured a real server."""

    scheme: str
    # From the URI of one of our keys to a similar URI of a missing key.
    absent: Callable[[str], str]
    # Ways for the backend's operator to make one of our keys, by its URI, unusable for us.
    unusable: Mapping[str, Callable[[str], None]]
    # No error may contain one of these.
    secrets: tuple[str, ...]
    # URIs of something that is not a key, or that may not exist.
    wrong: tuple[str, ...] = ()
    # From this call on, nothing listens at its address. None if the backend uses no server.
    leave: Callable[[], None] | None = None
    # The longest message it signs, in bytes, if shorter than TOO_LONG.
    longest: Mapping[str, int] = field(default_factory=dict)
    # Its test server shows the public half even of unusable keys; the real one does not.
    shows_all: bool = False


@pytest.fixture
def awskms_home(aws_kms: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    operator: Any = boto3.session.Session().client(
        "kms", endpoint_url=aws_kms, region_name="eu-central-1"
    )

    def leave() -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:1")
        awskms._clients.clear()

    yield Home(
        scheme="awskms",
        absent=lambda uri: uri[:-1] + ("0" if uri[-1] != "0" else "1"),
        unusable={
            "disabled": lambda uri: operator.disable_key(KeyId=uri.removeprefix("awskms:")),
            "to be deleted": lambda uri: operator.schedule_key_deletion(
                KeyId=uri.removeprefix("awskms:")
            ),
        },
        secrets=(*AWS_CREDENTIALS.values(), aws_kms.removeprefix("http://")),
        wrong=("alias/agentauth", "arn:aws:kms:eu-central-1:000000000000:alias/agentauth"),
        leave=leave,
        longest={"EdDSA": awskms.MAX_MESSAGE_BYTES},
        shows_all=True,
    )
    operator.close()


@pytest.fixture
def file_home(settings: Settings, key_directory: Path) -> Home:
    settings.KEY_BACKEND = "file"

    def path(uri: str) -> Path:
        return key_directory / uri.removeprefix("file:")

    return Home(
        scheme="file",
        absent=lambda uri: uri.replace("token-", "other-"),
        unusable={
            "open to others": lambda uri: path(uri).chmod(0o644),
            "gone": lambda uri: path(uri).unlink(),
            "no key": lambda uri: _overwrite(path(uri)),
        },
        secrets=("PRIVATE KEY",),
        wrong=("token.pem", "/etc/passwd"),
    )


@pytest.fixture
def file_encrypted_home(file_home: Home, settings: Settings, tmp_path: Path) -> Home:
    path = tmp_path / "passphrase"
    path.touch(0o600)
    path.write_text("a-passphrase-of-tests")
    settings.KEY_FILE_PASSPHRASE_FILE = str(path)
    return replace(file_home, secrets=(*file_home.secrets, "a-passphrase-of-tests"))


def _overwrite(path: Path) -> None:
    path.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


@pytest.fixture
def vault_home(vault: str, settings: Settings) -> Home:
    transit: Any = hvac.Client(url=vault, token=openbao.ROOT_TOKEN).secrets.transit

    def change(**configuration: Any) -> Callable[[str], None]:
        return lambda uri: transit.update_key_configuration(uri.rpartition("/")[2], **configuration)

    def delete(uri: str) -> None:
        change(deletion_allowed=True)(uri)
        transit.delete_key(uri.rpartition("/")[2])

    return Home(
        scheme="vault",
        absent=lambda uri: uri[:-1] + ("0" if uri[-1] != "0" else "1"),
        unusable={
            "exportable": change(exportable=True),
            "backed up in plaintext": change(allow_plaintext_backup=True),
            "deleted": delete,
        },
        secrets=(openbao.ROOT_TOKEN, vault.removeprefix("http://")),
        wrong=("transit", "transit/agentauth-token", "sys/mounts"),
        leave=lambda: settings.VAULT.update(ADDR="http://127.0.0.1:1"),
    )


@pytest.fixture
def gcpkms_home(gcpkms: gcp_kms.Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Home:
    def become(state: int) -> Callable[[str], None]:
        return lambda uri: setattr(gcpkms.keys[uri.removeprefix("gcpkms:")], "state", state)

    def leave() -> None:
        gcp_kms.write_account(tmp_path / "account.json", rsa.generate_private_key(65537, 2048), 1)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        monkeypatch.setenv("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "localhost:1")
        gcpkms_backend._clients.clear()

    return Home(
        scheme="gcpkms",
        absent=lambda uri: uri[:-1] + "2",
        unusable={
            "disabled": become(gcp_kms.State.DISABLED),
            "to be destroyed": become(gcp_kms.State.DESTROY_SCHEDULED),
        },
        secrets=("PRIVATE KEY",),
        wrong=(gcp_kms.RING, f"{gcp_kms.RING}/cryptoKeys/token"),
        leave=leave,
    )


@pytest.fixture
def pkcs11_home(pkcs11: str) -> Home:
    def change(attribute: Attribute, value: Any) -> Callable[[str], None]:
        def made(uri: str) -> None:
            with pkcs11_backend._token(pkcs11) as token:
                session = token.open_for_writing()
                for found in list(
                    session.get_objects({Attribute.ID: bytes.fromhex(uri.rpartition("/")[2])})
                ):
                    found[attribute] = value
                session.close()

        return made

    return Home(
        scheme="pkcs11",
        absent=lambda uri: uri[:-1] + ("0" if uri[-1] != "0" else "1"),
        unusable={"under another id": change(Attribute.ID, b"another")},
        secrets=(softhsm.PIN,),
        wrong=(pkcs11, f"{pkcs11}/", "another/00"),
    )


def pairs(wanted: Callable[[str, str], bool] = lambda _name, _alg: True) -> list[Any]:
    """Pairs of backend and algorithm, as parameters; `wanted` selects some."""
    return [
        pytest.param((name, alg), marks=MARKS.get(name, []), id=f"{name}-{alg}")
        for name, algs in HOMES_UNDER_TEST.items()
        for alg in algs
        if wanted(name, alg)
    ]


# A backend inside this process cannot be unreachable.
FAR = pairs(lambda name, _alg: name.partition("-")[0] not in {"file", "pkcs11"})


@pytest.fixture(params=pairs())
def home(request: pytest.FixtureRequest, settings: Settings) -> Home:
    """Each backend with each algorithm, which is in settings."""
    name, settings.KEY_ALGORITHM = request.param
    found: Home = request.getfixturevalue(f"{name}_home".replace("-", "_"))
    return found


@contextlib.contextmanager
def refused(home: Home, kind: type[BackendError] = BackendError) -> Iterator[None]:
    with pytest.raises(kind) as error:
        yield
    # All that a log could contain of it, including its causes.
    said = "".join(traceback.format_exception(error.value))
    assert not [secret for secret in home.secrets if secret in said]


def test_every_home_is_here() -> None:
    assert {name.partition("-")[0] for name in HOMES_UNDER_TEST} == set(BACKENDS) == set(PLACES)


def test_every_home_has_a_page_and_a_row_in_the_overview() -> None:
    assert {path.stem for path in (DOCS / "keys").iterdir()} == set(BACKENDS)
    assert set(re.findall(r"\(keys/(\w+)\.md\)", (DOCS / "keys.md").read_text())) == set(BACKENDS)


def test_a_key_signs_what_its_public_half_verifies(home: Home, settings: Settings) -> None:
    uri, public = create(purpose="token")
    assert uri.startswith(f"{home.scheme}:")
    assert public_key(uri) == public
    opened = open_signer(uri, public)
    assert (opened.kid, opened.alg, opened.public) == (
        public.thumbprint,
        settings.KEY_ALGORITHM,
        public,
    )
    for length in (1, 4096, home.longest.get(opened.alg, TOO_LONG)):
        message = b"m" * length
        signature = opened.sign(message)
        assert len(signature) == 64
        public.verify(message, signature, alg=opened.alg)


@pytest.mark.parametrize(
    "home", pairs(lambda name, alg: (name, alg) == ("awskms", "EdDSA")), indirect=True
)
def test_KM_9_a_message_longer_than_it_signs_is_refused(home: Home) -> None:
    uri, public = create(purpose="token")
    with refused(home):
        open_signer(uri, public).sign(b"m" * (home.longest[public.alg] + 1))


def test_the_logs_key_is_Ed25519_whatever_settings_say(home: Home) -> None:
    """No note of the log could be signed with another algorithm."""
    assert create(purpose="audit")[1].alg == "EdDSA"


def test_each_key_is_another(home: Home) -> None:
    (first, of_first), (second, of_second) = create(purpose="token"), create(purpose="token")
    assert first != second
    assert of_first != of_second


def test_missing_key_address_is_refused_at_the_latest_when_signing(home: Home) -> None:
    uri, public = create(purpose="token")
    absent = home.absent(uri)
    assert absent != uri
    with refused(home):
        public_key(absent)
    with refused(home):
        open_signer(absent, public).sign(b"m")


def test_JK_20_malformed_key_address_is_refused(home: Home) -> None:
    uri, public = create(purpose="token")
    changed = (
        uri.upper(),
        f"{uri}\n",
        f" {uri}",
        f"{uri}/",
        f"{uri}/../x",
        f"{uri}?x=1",
        f"{uri}#x",
    )
    for address in (*changed, *(f"{home.scheme}:{rest}" for rest in (*SHARED, *home.wrong))):
        with refused(home):
            public_key(address)
        with refused(home):
            open_signer(address, public).sign(b"m")


def test_a_key_is_refused_where_another_was_pinned(home: Home, settings: Settings) -> None:
    uri, _ = create(purpose="token")
    _, other = create(purpose="token")
    # Keys of the other algorithm are refused too, by our code or by the backend.
    for public in (other, PrivateKey.generate("ES256").public, PrivateKey.generate("EdDSA").public):
        with refused(home):
            open_signer(uri, public).sign(b"m")


def test_KM_4_a_key_that_must_not_be_used_is_refused(home: Home) -> None:
    assert home.unusable
    for spoil in home.unusable.values():
        uri, public = create(purpose="token")
        spoil(uri)
        with refused(home):
            public_key(uri)
            if home.shows_all:
                open_signer(uri, public).sign(b"m")


@pytest.mark.parametrize("home", FAR, indirect=True)
def test_KM_14_unreachable_server_fails_calls_but_not_open_signer(home: Home) -> None:
    uri, public = create(purpose="token")
    assert home.leave
    home.leave()
    opened = open_signer(uri, public)
    for act in (
        lambda: opened.sign(b"m"),
        lambda: public_key(uri),
        lambda: create(purpose="token"),
    ):
        with refused(home, BusyError):
            act()


@pytest.mark.parametrize("home", pairs(lambda _name, alg: alg == "ES256"), indirect=True)
def test_KM_7_P_256_signatures_all_verify_and_keep_leading_zeros(home: Home) -> None:
    uri, public = create(purpose="token")
    opened = open_signer(uri, public)

    def signed(number: int) -> bytes:
        message = number.to_bytes(4, "big")
        signature = opened.sign(message)
        assert len(signature) == 64
        public.verify(message, signature, alg="ES256")
        return signature

    with_zeros, done = 0, 0
    with ThreadPoolExecutor(4) as pool:
        while done < SIGNATURES or (not with_zeros and done < MOST_SIGNATURES):
            made = list(pool.map(signed, range(done, done + 100)))
            with_zeros += sum(0 in (signature[0], signature[32]) for signature in made)
            done += len(made)
    assert with_zeros


def test_threads_sign_at_once(home: Home) -> None:
    uri, public = create(purpose="token")
    opened = open_signer(uri, public)

    def sign(number: int) -> None:
        message = b"message %d" % number
        public.verify(message, opened.sign(message), alg=public.alg)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(sign, range(80)))) == 80


@pytest.mark.django_db
def test_a_purpose_is_served_from_it(home: Home, settings: Settings) -> None:
    now = timezone.now()
    key = rotate_key(purpose="token", actor=SYSTEM, now=now)
    signing = signer(purpose="token", now=now)
    assert (signing.kid, signing.alg) == (key.kid, settings.KEY_ALGORITHM)
    signing.public.verify(b"m", signing.sign(b"m"), alg=signing.alg)
    [row] = public_jwks(purpose="token", now=now)["keys"]
    assert (row["kid"], row["alg"]) == (key.kid, settings.KEY_ALGORITHM)


@pytest.mark.django_db
@pytest.mark.parametrize("home", FAR, indirect=True)
def test_KM_14_a_purpose_whose_server_is_away_is_unavailable(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    now = timezone.now()
    rotate_key(purpose="token", actor=SYSTEM, now=now)
    assert home.leave
    home.leave()
    with pytest.raises(TemporarilyUnavailableError):
        signer(purpose="token", now=now).sign(b"m")
    assert "signing is unavailable" in caplog.text
    assert not [secret for secret in home.secrets if secret in caplog.text]
