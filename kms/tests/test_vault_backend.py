"""The `vault:` backend: documented rights suffice, exportable keys are refused, answers checked."""

import base64
from collections.abc import Callable
from typing import Any

import hvac
import pytest
from hvac.exceptions import Forbidden, InvalidRequest
from pytest_django.fixtures import Settings

from agentauth.protocol.keys import PrivateKey
from audit.new_ids import new_id
from kms.backends import BackendError, create, open_signer, public_key
from kms.tests.fake_vault import GOOD, KEY, PUBLIC, URI, FakeVault, encode_signature
from tests import openbao


@pytest.mark.parametrize(
    "page", ["docs/install.md", "docs/keys/vault.md", "deploy/openbao/openbao.hcl"]
)
def test_documented_policy_allows_create_read_and_sign_and_nothing_else(
    vault: str, settings: Settings, page: str
) -> None:
    root: Any = hvac.Client(url=vault, token=openbao.ROOT_TOKEN)
    root.sys.create_or_update_policy("agentauth", openbao.policies(page)[-1])
    settings.VAULT["TOKEN"] = root.auth.token.create(policies=["agentauth"])["auth"]["client_token"]
    uri, public = create(purpose="token")
    assert public_key(uri) == public
    public.verify(b"m", open_signer(uri, public).sign(b"m"), alg="EdDSA")
    name = uri.rpartition("/")[2]
    mine: Any = hvac.Client(url=vault, token=settings.VAULT["TOKEN"])
    for path in (
        *(
            f"transit/keys/{name}/{act}"
            for act in ("config", "rotate", "trim", "soft-delete", "import_version")
        ),
        "transit/cache-config",
        "transit/sign/other",
        f"transit/encrypt/{name}",
        f"other/keys/{name}",
        f"other/sign/{name}",
        "sys/policies/acl/agentauth",
        "sys/mounts/other",
    ):
        with pytest.raises(Forbidden):
            mine.write_data(path, data={})
    for path in (f"transit/export/signing-key/{name}", f"transit/backup/{name}", "sys/mounts"):
        with pytest.raises(Forbidden):
            mine.read(path)
    with pytest.raises(Forbidden):
        mine.list("transit/keys")
    with pytest.raises(Forbidden):
        mine.delete(f"transit/keys/{name}")
    # Not even root: the key was created as not exportable.
    with pytest.raises(InvalidRequest):
        root.secrets.transit.export_key(name=name, key_type="signing-key")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ({"key_type": "ed25519", "exportable": True}, "can be exported, or backed up"),
        ({"key_type": "ed25519", "allow_plaintext_backup": True}, "can be exported, or backed up"),
        ({"key_type": "ecdsa-p384"}, "must be Ed25519 or P-256"),
        ({"key_type": "aes256-gcm96"}, "must be Ed25519 or P-256"),
    ],
    ids=["exportable", "plaintext-backup", "p384", "aes"],
)
def test_key_of_another_type_or_one_that_can_be_exported_is_refused(
    vault: str, kind: dict[str, Any], says: str
) -> None:
    name = f"agentauth-token-{new_id()}"
    root: Any = hvac.Client(url=vault, token=openbao.ROOT_TOKEN)
    root.secrets.transit.create_key(name=name, **kind)
    with pytest.raises(BackendError, match=says):
        public_key(f"vault:transit/{name}")


def test_KM_14_a_wrong_token_is_an_error_that_does_not_show_it(
    vault: str, settings: Settings
) -> None:
    settings.VAULT["TOKEN"] = "wrong-token"
    with pytest.raises(BackendError, match="refused the token") as refused:
        create(purpose="token")
    assert "wrong-token" not in str(refused.value)


def test_without_a_login_nothing_is_created(vault: str, settings: Settings) -> None:
    settings.VAULT["TOKEN"] = ""
    with pytest.raises(BackendError, match="Set VAULT_TOKEN"):
        create(purpose="token")


def test_signature_of_the_fake_server_is_accepted(fake_vault: type[FakeVault]) -> None:
    """So the tests below fail for the reason that they name."""
    fake_vault.signature = staticmethod(lambda message: encode_signature(KEY.sign(message)))
    assert open_signer(URI, KEY.public).sign(b"m") == KEY.sign(b"m")


@pytest.mark.parametrize(
    "signature",
    [
        lambda message: encode_signature(KEY.sign(message + b"!")),
        lambda message: encode_signature(PrivateKey.generate("EdDSA").sign(message)),
        lambda message: encode_signature(KEY.sign(message), version=2),
        lambda message: encode_signature(KEY.sign(message)[:63]),
        lambda message: encode_signature(KEY.sign(message)) + "*",
        lambda message: KEY.sign(message).hex(),
        lambda _message: "",
        lambda _message: None,
        lambda _message: {"a": 1},
    ],
    ids=[
        "of-another-message",
        "by-another-key",
        "other-version",
        "short",
        "not-base64",
        "hex",
        "empty",
        "null",
        "object",
    ],
)
def test_false_or_malformed_signature_is_never_used(
    fake_vault: type[FakeVault], signature: Callable[[bytes], Any]
) -> None:
    fake_vault.signature = staticmethod(signature)
    with pytest.raises(BackendError):
        open_signer(URI, KEY.public).sign(b"m")


@pytest.mark.parametrize(
    "key",
    [
        None,
        [],
        {},
        {**GOOD, "keys": {}},
        {**GOOD, "keys": {"2": {"public_key": PUBLIC}}},
        {**GOOD, "keys": {"1": {"public_key": "AAAA"}}},
        {**GOOD, "keys": {"1": {"public_key": base64.b64encode(bytes(32)).decode()}}},
        {**GOOD, "keys": {"1": {"public_key": 5}}},
        {**GOOD, "keys": {"1": {"public_key": "é"}}},
    ],
    ids=[
        "null",
        "list",
        "empty",
        "no-version",
        "other-version",
        "short",
        "small-order",
        "number",
        "not-ascii",
    ],
)
def test_answer_without_a_valid_public_key_is_refused(
    fake_vault: type[FakeVault], key: Any
) -> None:
    fake_vault.key = key
    with pytest.raises(BackendError):
        public_key(URI)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_SS_4_a_redirect_is_not_followed(
    fake_vault: type[FakeVault], settings: Settings, status: int
) -> None:
    """Its target would get the token, and a redirect can lead to any address in our network."""
    followed: list[str] = []
    home = settings.VAULT["ADDR"]

    def redirecting(self: FakeVault) -> None:
        if self.path.startswith("/elsewhere"):
            followed.append(self.path)
            self.say(200, {"data": GOOD})
            return
        self.body()
        self.say(status, headers={"Location": f"{home}/elsewhere{self.path}"})

    fake_vault.do_GET = fake_vault.do_POST = redirecting  # type: ignore[method-assign]
    with pytest.raises(BackendError):
        public_key(URI)
    with pytest.raises(BackendError):
        create(purpose="token")
    fake_vault.do_GET = FakeVault.do_GET  # type: ignore[method-assign]
    assert public_key(URI) == KEY.public
    signer = open_signer(URI, KEY.public)
    with pytest.raises(BackendError):
        signer.sign(b"m")
    assert followed == []
