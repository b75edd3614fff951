"""The `pkcs11:` backend on a real library: what it makes and refuses, and how it recovers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pytest_django.fixtures import Settings

from kms import backends
from kms.backends import BackendError, BusyError, create, open_signer, public_key
from kms.backends import pkcs11 as backend
from tests.softhsm import LABEL, PIN

pytestmark = pytest.mark.softhsm

ROOT = Path(__file__).resolve().parents[2]
P384 = bytes.fromhex("06052b81040022")


def key_id(uri: str) -> bytes:
    return bytes.fromhex(uri.rpartition("/")[2])


@contextmanager
def writing() -> Iterator[Any]:
    """A session in which an operator changes the token's objects."""
    with backend._token(LABEL) as token:
        session = token.open_for_writing()
        yield session
        session.close()


def made_by_hand(
    kind: KeyType = KeyType.EC_EDWARDS,
    curve: bytes = backend._ED25519,
    made: bytes | None = None,
    private: dict[Attribute, bool] | None = None,
) -> str:
    """A key pair as an operator may make it; returns its URI."""
    made = made or os.urandom(8)
    template = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False} | (private or {})
    with writing() as session:
        session.create_domain_parameters(
            kind, {Attribute.EC_PARAMS: curve}, local=True
        ).generate_keypair(
            id=made, store=True, capabilities=MechanismFlag.SIGN, private_template=template
        )
    return f"pkcs11:{LABEL}/{made.hex()}"


def destroy(uri: str, *kinds: ObjectClass) -> None:
    with writing() as session:
        for kind in kinds or (ObjectClass.PUBLIC_KEY, ObjectClass.PRIVATE_KEY):
            for found in session.get_objects({Attribute.CLASS: kind, Attribute.ID: key_id(uri)}):
                found.destroy()


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
def test_a_key_is_made_on_the_token_and_stays_there(
    pkcs11: str, settings: Settings, algorithm: str
) -> None:
    settings.KEY_ALGORITHM = algorithm
    uri, public = create(purpose="receipt")
    assert uri.startswith(f"pkcs11:{pkcs11}/")
    with backend._token(pkcs11) as token:
        private = token.only(ObjectClass.PRIVATE_KEY, key_id(uri))
        assert private[Attribute.LABEL].startswith("agentauth-receipt-")
        held = (
            Attribute.TOKEN,
            Attribute.PRIVATE,
            Attribute.ALWAYS_SENSITIVE,
            Attribute.NEVER_EXTRACTABLE,
        )
        assert all(private[attribute] for attribute in held)
        assert not any(
            private[attribute]
            for attribute in (Attribute.DECRYPT, Attribute.DERIVE, Attribute.UNWRAP)
        )
    signer = open_signer(uri, public)
    for message in (b"m", b"m" * 100_000):
        public.verify(message, signer.sign(message), alg=algorithm)


def test_a_key_named_the_older_way_is_used(pkcs11: str) -> None:
    uri = made_by_hand(curve=backend._ED25519_AS_WORD)
    public = public_key(uri)
    public.verify(b"m", open_signer(uri, public).sign(b"m"), alg="EdDSA")


@pytest.mark.parametrize("private", [{Attribute.EXTRACTABLE: True}, {Attribute.SENSITIVE: False}])
def test_a_key_that_can_be_taken_out_is_refused(
    pkcs11: str, private: dict[Attribute, bool]
) -> None:
    with pytest.raises(BackendError, match="can be extracted"):
        public_key(made_by_hand(private=private))


def test_KM_4_a_key_of_another_kind_is_refused(pkcs11: str) -> None:
    with pytest.raises(BackendError, match="must be Ed25519 or P-256"):
        public_key(made_by_hand(KeyType.EC, P384))
    made = os.urandom(8)
    with writing() as session:
        private = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
        session.generate_keypair(KeyType.RSA, 2048, id=made, store=True, private_template=private)
    with pytest.raises(BackendError, match="AttributeTypeInvalid"):
        public_key(f"pkcs11:{pkcs11}/{made.hex()}")


def test_a_key_that_is_not_there_or_there_twice_is_refused(pkcs11: str) -> None:
    uri, public = create(purpose="token")
    with pytest.raises(BackendError, match="0 keys"):
        public_key(uri[:-1] + ("0" if uri[-1] != "0" else "1"))
    made_by_hand(made=key_id(uri))
    backend._module.stop()
    for call in (lambda: public_key(uri), lambda: open_signer(uri, public).sign(b"m")):
        with pytest.raises(BackendError, match="2 keys"):
            call()


def test_a_key_that_ends_with_its_session_is_refused(pkcs11: str) -> None:
    made = os.urandom(8)
    with backend._token(pkcs11) as token:
        session = token.open_for_writing()
        curve = session.create_domain_parameters(
            KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: backend._ED25519}, local=True
        )
        curve.generate_keypair(id=made, store=False, capabilities=MechanismFlag.SIGN)
    with pytest.raises(BackendError, match="0 keys"):
        public_key(f"pkcs11:{pkcs11}/{made.hex()}")
    session.close()


def test_KM_4_a_key_that_an_operator_destroys_signs_no_more(pkcs11: str) -> None:
    uri, public = create(purpose="token")
    signer = open_signer(uri, public)
    signer.sign(b"m")
    destroy(uri)
    with pytest.raises(BackendError):
        signer.sign(b"m")
    with pytest.raises(BackendError, match="0 keys"):
        signer.sign(b"m")


def test_a_key_whose_public_half_is_gone_is_refused(pkcs11: str) -> None:
    uri, _ = create(purpose="token")
    destroy(uri, ObjectClass.PUBLIC_KEY)
    with pytest.raises(BackendError, match="0 keys"):
        public_key(uri)


@pytest.mark.parametrize(
    ("alg", "point"),
    [
        ("EdDSA", b""),
        ("EdDSA", bytes(32)),
        ("EdDSA", b"\x04\x20" + b"\x01" + bytes(31)),
        ("EdDSA", b"\x04\x20" + b"\x02" * 33),
        ("ES256", b"\x04\x41\x04" + bytes(64)),
        ("ES256", b"\x04\x41\x02" + b"\x01" * 64),
        ("ES256", b"\x04\x41\x04" + b"\x01" * 63),
        # Valid points (RFC 8032 section 7.1, the base point of P-256), but not in an OCTET STRING.
        (
            "EdDSA",
            bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"),
        ),
        (
            "ES256",
            bytes.fromhex(
                "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
                "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
            ),
        ),
    ],
)
def test_a_public_key_that_is_none_is_refused(alg: Any, point: bytes) -> None:
    with pytest.raises(BackendError, match="The token sent an"):
        backend._public_key(alg, point)


@pytest.mark.parametrize(
    "address",
    [
        "",
        LABEL,
        f"{LABEL}/",
        f"{LABEL}/0",
        f"{LABEL}/0G",
        f"{LABEL}/AB",
        f"{LABEL}/00\n",
        f"/{'0' * 32}",
        f"{LABEL}/{'00' * 33}",
        f"{'x' * 33}/00",
        "a b/00",
        f"{LABEL}/../00",
    ],
)
def test_JK_20_only_a_label_and_an_id_are_an_address(pkcs11: str, address: str) -> None:
    with pytest.raises(BackendError, match="not the address"):
        public_key(f"pkcs11:{address}")


@pytest.mark.parametrize("place", ["", "a/b", "a b", "x" * 33, f"{LABEL}\n"])
def test_backend_place_must_be_a_token_label(pkcs11: str, settings: Settings, place: str) -> None:
    settings.KEY_BACKEND = f"pkcs11:{place}"
    with pytest.raises(BackendError, match="by its label"):
        create(purpose="token")


def test_a_token_that_is_not_there_is_said_to_be_so(pkcs11: str, settings: Settings) -> None:
    settings.KEY_BACKEND = "pkcs11:another"
    with pytest.raises(BackendError, match="NoSuchToken"):
        create(purpose="token")


def test_KM_14_a_PIN_that_was_refused_is_not_tried_again(pkcs11: str, settings: Settings) -> None:
    """A token locks itself after a few wrong PINs, and each signing process would add tries."""
    uri, public = create(purpose="token")
    signer = open_signer(uri, public)
    backend._module.stop()
    settings.PKCS11["PIN"] = "wrong-pin"
    with pytest.raises(BackendError, match="PinIncorrect") as refused:
        signer.sign(b"m")
    # A refusal, not a temporary failure, so no caller retries.
    assert not isinstance(refused.value, BusyError)
    assert "wrong-pin" not in str(refused.value)
    for _ in range(2):
        with pytest.raises(BackendError, match="not tried again") as refused:
            signer.sign(b"m")
        assert "wrong-pin" not in str(refused.value)
    settings.PKCS11["PIN"] = PIN
    assert len(signer.sign(b"m")) == 64


def test_the_PIN_may_stand_in_a_file(pkcs11: str, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "pin").write_text(f"{PIN}\n")
    del settings.PKCS11["PIN"]
    with pytest.raises(BackendError, match="no PIN"):
        create(purpose="token")
    settings.PKCS11["PIN_FILE"] = str(tmp_path / "pin")
    create(purpose="token")


@pytest.mark.parametrize("module", ["", "/nowhere/lib.so", __file__])
def test_a_library_that_is_none_is_said_to_be_so(
    pkcs11: str, settings: Settings, module: str
) -> None:
    settings.PKCS11["MODULE"] = module
    with pytest.raises(BackendError, match="PKCS11_MODULE"):
        create(purpose="token")


def test_a_package_that_is_not_installed_is_named(
    pkcs11: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    monkeypatch.delitem(sys.modules, "kms.backends.pkcs11")
    backends._home.cache_clear()
    with pytest.raises(BackendError, match="pkcs11: needs is not installed: pkcs11"):
        create(purpose="token")


def test_lost_hsm_session_is_reopened(pkcs11: str) -> None:
    uri, public = create(purpose="token")
    signer = open_signer(uri, public)
    signer.sign(b"m")
    backend._module._tokens[pkcs11]._session.close()
    with pytest.raises(BusyError, match="The token failed"):
        signer.sign(b"m")
    public.verify(b"m", signer.sign(b"m"), alg="EdDSA")


def test_waiting_too_long_for_the_hsm_is_busy(pkcs11: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, public = create(purpose="token")
    monkeypatch.setattr(backend, "TIMEOUT_SECONDS", 0.01)
    with backend._module.turn, pytest.raises(BusyError, match="busy"):
        open_signer(uri, public).sign(b"m")


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
def test_threads_do_not_disturb_each_other(pkcs11: str, settings: Settings, algorithm: str) -> None:
    settings.KEY_ALGORITHM = algorithm
    uri, public = create(purpose="token")
    signer = open_signer(uri, public)

    def sign(number: int) -> None:
        message = number.to_bytes(4, "big")
        public.verify(message, signer.sign(message), alg=algorithm)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sign, range(400)))


def test_library_inherited_from_the_parent_is_ended_once_before_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SoftHSM tolerates a library that was not finalized; one that keeps a connection does not."""
    done: list[str] = []

    class Library:
        def finalize(self) -> None:
            done.append("ended")

    def started(_path: str) -> Library:
        done.append("started")
        return Library()

    monkeypatch.setattr("pkcs11.lib", started)
    module = backend._Module(inherited=Library())
    for _ in range(2):
        module._start()
    assert done == ["ended", "started", "started"]


FORKS = """
import os, sys, django
django.setup()
from kms.backends import pkcs11
key = pkcs11.Pkcs11Backend().open(sys.argv[1])
public, module = key.public(), pkcs11._module
for _ in range(3):
    child = os.fork()
    assert (pkcs11._module is module) is bool(child)
    for _ in range(20):
        public.verify(b"m", key.sign(b"m", public.alg), alg=public.alg)
    if child == 0:
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_process_that_forks_after_it_has_signed_signs_in_both_halves(
    pkcs11: str, softhsm_env: dict[str, str]
) -> None:
    """gunicorn forks, and each process must initialize the library itself."""
    uri, _ = create(purpose="token")
    command = [sys.executable, "-c", FORKS, uri]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **softhsm_env}, check=True, timeout=60)
