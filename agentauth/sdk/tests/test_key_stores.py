"""The stores of an agent's identity beside the key file: keyring, environment, key management."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import keyring.backend
import keyring.backends.null
import keyring.errors
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from agentauth import Capability
from agentauth.protocol.errors import InvalidKeyError, InvalidRequestError
from agentauth.protocol.keys import PrivateKey
from agentauth.sdk import AgentAuthClient, KeyFileError, key_store, keyring_store
from agentauth.sdk.key_file import KeyFile
from agentauth.sdk.key_store import EnvironmentStore, KeyStore
from agentauth.sdk.keyring_store import KeyringStore
from agentauth.sdk.kms_signer import KmsSigner
from agentauth.sdk.tests.fake_registry import (
    CALENDAR,
    SP_ID,
    URL,
    FakeRegistry,
    grant,
    run,
)


class FakeKeyring(keyring.backend.KeyringBackend):
    priority = 1.0
    name = "fake"

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries: dict[tuple[str, str], str] = {}
        self.is_locked = False

    def get_password(self, service: str, username: str) -> str | None:
        if self.is_locked:
            raise keyring.errors.KeyringLocked("locked: secret words")
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.is_locked:
            raise keyring.errors.KeyringLocked("locked: secret words")
        self.entries[service, username] = password


@pytest.fixture
def ring(tmp_path: Path) -> Any:
    former, made = keyring.get_keyring(), FakeKeyring()
    keyring.set_keyring(made)
    yield made
    keyring.set_keyring(former)


def client_with(registry: FakeRegistry, keys: KeyStore) -> AgentAuthClient:
    client = AgentAuthClient(URL, keys=keys)
    client._registry.transport = httpx.MockTransport(registry)
    return client


# ---- keyring


def test_the_keyring_keeps_the_identity_across_processes(
    registry: FakeRegistry, ring: FakeKeyring, tmp_path: Path
) -> None:
    run(client_with(registry, KeyringStore(lock_folder=tmp_path)).register(CALENDAR))
    run(client_with(registry, KeyringStore(lock_folder=tmp_path)).register())
    assert len({proof.jkt for proof in registry.proofs}) == 1
    assert list(ring.entries) == [("agentauth", URL)]


def test_a_key_in_the_keyring_is_rotated(
    registry: FakeRegistry, ring: FakeKeyring, tmp_path: Path
) -> None:
    client = client_with(registry, KeyringStore(lock_folder=tmp_path))
    run(client.register(CALENDAR))
    former = client.identity().signer.kid
    registry.script = lambda request: (
        httpx.Response(200, json={"agent_id": "a", "status": "active"})
        if request.url.path in {"/v1/agents/me", "/v1/agents/me/key"}
        else None
    )
    run(client.rotate_key())
    stored = KeyringStore(lock_folder=tmp_path).load(URL)
    assert stored
    assert stored.signer.kid != former
    assert stored.next_key is None


def test_of_two_processes_with_a_new_key_in_the_keyring_one_wins(
    ring: FakeKeyring, tmp_path: Path
) -> None:
    store = KeyringStore(lock_folder=tmp_path)
    first, second = store.create(store.make(URL)), store.create(store.make(URL))
    stored = store.load(URL)
    assert stored
    assert first.signer.kid == second.signer.kid == stored.signer.kid


def test_a_change_in_the_keyring_starts_from_what_is_stored_now(
    ring: FakeKeyring, tmp_path: Path
) -> None:
    store, other = KeyringStore(lock_folder=tmp_path), KeyringStore(lock_folder=tmp_path)
    store.create(store.make(URL))
    other.update(URL, lambda stored: replace(stored, manifest="m"))
    changed = store.update(URL, lambda stored: replace(stored, agent_id="a"))
    assert (changed.manifest, changed.agent_id) == ("m", "a")


def test_a_keyring_that_is_locked_is_explained_without_its_words(
    ring: FakeKeyring, tmp_path: Path
) -> None:
    ring.is_locked = True
    store = KeyringStore(lock_folder=tmp_path)
    acts: list[Callable[[], object]] = [
        lambda: store.load(URL),
        lambda: store.create(store.make(URL)),
    ]
    for act in acts:
        with pytest.raises(KeyFileError, match="Unlock it, or use a key_file") as refused:
            act()
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("method", ["get_password", "set_password"])
def test_any_error_of_the_keyring_is_a_key_file_error_without_its_words(
    ring: FakeKeyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """As of Windows, whose backend lets `pywintypes.error` through."""
    store = KeyringStore(lock_folder=tmp_path)
    identity = store.make(URL)

    def fail(*_: object) -> None:
        raise OSError("secret words")

    acts: list[Callable[[], object]] = [
        lambda: store.create(identity),
        lambda: store.update(URL, lambda stored: replace(stored, agent_id="a")),
    ]
    if method == "get_password":
        acts.append(lambda: store.load(URL))
    else:
        # Only writing fails, so `update` finds an entry.
        other = replace(identity, registry="https://other.example")
        acts[0] = lambda: store.create(other)
        store.create(identity)
    monkeypatch.setattr(FakeKeyring, method, fail)
    for act in acts:
        with pytest.raises(KeyFileError, match=r"\(OSError\).*use a key_file") as refused:
            act()
        assert "secret" not in str(refused.value)
        assert refused.value.__cause__ is None


def test_a_keyring_backend_that_is_missing_is_a_key_file_error(
    ring: FakeKeyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring.core, "_keyring_backend", None)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "no_such_package.Keyring")
    store = KeyringStore(lock_folder=tmp_path)
    acts: list[Callable[[], object]] = [lambda: store.name, lambda: store.load(URL)]
    for act in acts:
        with pytest.raises(KeyFileError, match="ModuleNotFoundError"):
            act()


def test_a_lock_folder_that_cannot_be_made_is_a_key_file_error(
    ring: FakeKeyring, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    store = KeyringStore(lock_folder=tmp_path / "file" / "folder")
    with pytest.raises(KeyFileError, match="cannot be written"):
        store.create(store.make(URL))


def test_an_account_of_another_registry_is_named(ring: FakeKeyring, tmp_path: Path) -> None:
    store = KeyringStore("mine", lock_folder=tmp_path)
    store.create(store.make(URL))
    expected = f"The entry mine in the keyring fake belongs to the registry {re.escape(URL)}"
    with pytest.raises(KeyFileError, match=expected + r".*another keyring account for https://b"):
        store.load("https://b.example")


def test_a_keyring_entry_that_is_no_identity_is_named_without_its_content(
    ring: FakeKeyring, tmp_path: Path
) -> None:
    ring.entries["agentauth", URL] = "secret words"
    with pytest.raises(KeyFileError, match="does not hold an agent's identity") as refused:
        KeyringStore(lock_folder=tmp_path).load(URL)
    assert "secret" not in str(refused.value)


def test_a_keyring_entry_that_vanished_is_not_replaced(ring: FakeKeyring, tmp_path: Path) -> None:
    store = KeyringStore(lock_folder=tmp_path)
    store.create(store.make(URL))
    ring.entries.clear()
    with pytest.raises(KeyFileError, match="vanished"):
        store.update(URL, lambda stored: replace(stored, agent_id="a"))
    assert ring.entries == {}


@pytest.mark.parametrize("backend", [keyring.backends.null.Keyring, FakeKeyring])
def test_a_keyring_that_stores_nothing_is_refused_and_named(
    backend: Any, ring: FakeKeyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with PYTHON_KEYRING_BACKEND=keyring.backends.null.Keyring, or one that cuts texts."""
    monkeypatch.setattr(FakeKeyring, "set_password", lambda ring, service, name, text: (
        ring.entries.update({(service, name): text[:100]})
    ))  # fmt: skip
    keyring.set_keyring(backend())
    store = KeyringStore(lock_folder=tmp_path)
    with pytest.raises(KeyFileError, match=r"was not stored in.*or use a key_file"):
        store.create(store.make(URL))


# ---- environment


@pytest.fixture
def variables() -> dict[str, str]:
    return {"AGENTAUTH_KEY": PrivateKey.generate().to_pem().decode()}


def test_the_environment_s_key_signs(registry: FakeRegistry, variables: dict[str, str]) -> None:
    for _ in range(2):
        run(client_with(registry, EnvironmentStore(variables)).register(CALENDAR))
    key = PrivateKey.from_pem(variables["AGENTAUTH_KEY"].encode())
    assert {proof.jkt for proof in registry.proofs} == {key.public.thumbprint}


def test_line_feeds_of_the_key_may_be_escaped(variables: dict[str, str]) -> None:
    escaped = {"AGENTAUTH_KEY": variables["AGENTAUTH_KEY"].replace("\n", "\\n")}
    assert (
        EnvironmentStore(escaped).load(URL).signer.kid
        == EnvironmentStore(variables).load(URL).signer.kid
    )


def test_an_identity_in_the_environment_needs_no_registration(
    registry: FakeRegistry, variables: dict[str, str]
) -> None:
    first = EnvironmentStore(variables)
    run(client_with(registry, first).register(CALENDAR))
    known = first.load(URL)
    assert known.manifest
    assert known.agent_id
    whole = variables | {
        "AGENTAUTH_MANIFEST": known.manifest,
        "AGENTAUTH_AGENT_ID": known.agent_id,
    }
    registry.grants = [grant()]
    sent = len(registry.sent("POST", "/v1/agents"))
    run(client_with(registry, EnvironmentStore(whole)).get_token(SP_ID))
    assert len(registry.sent("POST", "/v1/agents")) == sent


def test_an_environment_s_key_is_not_rotated_or_widened(
    registry: FakeRegistry, variables: dict[str, str]
) -> None:
    client = client_with(registry, EnvironmentStore(variables))
    run(client.register(CALENDAR))
    sent = len(registry.requests)
    with pytest.raises(KeyFileError, match=r"AGENTAUTH_KEY, which this process cannot change"):
        run(client.rotate_key())
    with pytest.raises(KeyFileError, match="changed manifest would be lost"):
        run(client.renew_manifest([Capability.write("files")]))
    assert len(registry.requests) == sent
    assert run(client.renew_manifest()).status == "active"


@pytest.mark.parametrize("pem", ["", "secret words", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n"])
def test_a_variable_that_is_no_key_is_explained_without_its_content(pem: str) -> None:
    with pytest.raises(KeyFileError, match="AGENTAUTH_KEY") as refused:
        EnvironmentStore({"AGENTAUTH_KEY": pem}).load(URL)
    assert not pem or pem not in str(refused.value)
    assert "secret" not in str(refused.value)


# ---- key management service


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def p256() -> tuple[bytes, Callable[[bytes], bytes]]:
    """A key management service that returns DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    return public_pem(key), lambda message: key.sign(message, ec.ECDSA(hashes.SHA256()))


def ed() -> tuple[bytes, Callable[[bytes], bytes]]:
    key = ed25519.Ed25519PrivateKey.generate()
    return public_pem(key), key.sign


@pytest.mark.parametrize("service", [p256, ed])
def test_a_key_that_never_leaves_its_service_signs_for_an_agent(
    registry: FakeRegistry, tmp_path: Path, service: Callable[[], Any]
) -> None:
    pem, sign = service()
    path = tmp_path / "agent.json"
    registry.grants = [grant()]
    for _ in range(2):
        client = client_with(registry, KeyFile(path, signer=KmsSigner(pem, sign)))
        run(client.register(CALENDAR))
        run(client.get_token(SP_ID))
    assert {proof.jkt for proof in registry.proofs} == {KmsSigner(pem, sign).kid}
    assert "BEGIN" not in path.read_text()
    assert '"private_key": null' in path.read_text()


def test_a_key_in_a_service_is_not_rotated(registry: FakeRegistry, tmp_path: Path) -> None:
    pem, sign = ed()
    client = client_with(registry, KeyFile(tmp_path / "a.json", signer=KmsSigner(pem, sign)))
    run(client.register(CALENDAR))
    with pytest.raises(KeyFileError, match="key management service"):
        run(client.rotate_key())
    # The manifest is kept in the file, so it can change.
    widened = [*CALENDAR, Capability.write("files")]
    assert run(client.renew_manifest(widened)).status == "active"


def test_the_file_of_one_key_is_not_used_with_another(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    one = KeyFile(path, signer=KmsSigner(*ed()))
    one.create(one.make(URL))
    with pytest.raises(KeyFileError, match="another key"):
        KeyFile(path, signer=KmsSigner(*ed())).load(URL)
    with pytest.raises(KeyFileError, match=r"key management service.*signer="):
        KeyFile(path).load(URL)
    own = KeyFile(tmp_path / "b.json")
    own.create(own.make(URL))
    with pytest.raises(KeyFileError, match="another key"):
        KeyFile(own.path, signer=KmsSigner(*ed())).load(URL)


@pytest.mark.parametrize(
    "wrong",
    [b"", b"short", b"\0" * 64, p256()[1](b"x"), b"\x30" * 70, None, "x" * 64],
    ids=["nothing", "short", "zeros", "another key's", "no DER", "none", "text"],
)
@pytest.mark.parametrize("service", [p256, ed])
def test_a_signature_of_another_key_is_noticed(service: Callable[[], Any], wrong: Any) -> None:
    pem, _ = service()
    with pytest.raises(KeyFileError, match="by a key other than"):
        KmsSigner(pem, lambda _: wrong).sign(b"message")


@pytest.mark.parametrize("pem", ["", "x", public_pem(ec.generate_private_key(ec.SECP384R1()))])
def test_a_public_key_of_another_kind_is_refused(pem: str | bytes) -> None:
    with pytest.raises(InvalidKeyError, match="public_key"):
        KmsSigner(pem, lambda _: b"")


def test_a_service_that_is_down_is_not_hidden(registry: FakeRegistry, tmp_path: Path) -> None:
    def down(message: bytes) -> bytes:
        raise ConnectionError("kms is down")

    client = client_with(registry, KeyFile(tmp_path / "a", signer=KmsSigner(ed()[0], down)))
    with pytest.raises(ConnectionError, match="kms is down"):
        run(client.register(CALENDAR))


def test_a_client_has_one_store(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="not both"):
        AgentAuthClient(URL, key_file=tmp_path / "a", keys=KeyFile(tmp_path / "b"))


# ---- the page


def test_each_store_of_the_page_is_made_as_printed(
    registry: FakeRegistry,
    ring: FakeKeyring,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """docs/sdk.md, "Where the key is"."""
    page = (Path(__file__).resolve().parents[3] / "docs/sdk.md").read_text()
    section = page.partition("## Where the key is")[2]
    _, *rows = re.findall(r"^\| `(\w[\w.]*\(.*?\))`", section, re.MULTILINE)
    assert len(rows) == 4
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("AGENTAUTH_KEY", PrivateKey.generate().to_pem().decode())
    public_key, sign = ed()
    names = {
        "keyring_store": keyring_store,
        "key_store": key_store,
        "KeyFile": KeyFile,
        "KmsSigner": KmsSigner,
        "public_key": public_key,
        "sign": sign,
    }
    for number, expression in enumerate(rows):
        given = names | {"path": tmp_path / f"{number}.json"}
        made = eval(expression, given)  # noqa: S307 — our own page
        agent = run(client_with(registry, made).register(CALENDAR))
        assert agent.agent_id
        assert made.name
