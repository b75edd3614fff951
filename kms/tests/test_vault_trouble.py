"""If Vault or OpenBao cannot be used, the operator gets one line: what is wrong, what to do."""

from collections.abc import Iterator
from typing import Any

import hvac
import pytest
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

from tests import openbao

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def sealed_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with openbao.server(tmp_path_factory.mktemp("sealed")) as url:
        client: Any = hvac.Client(url=url, token=openbao.ROOT_TOKEN)
        client.sys.seal()
        yield url


def refusal() -> str:
    with pytest.raises(CommandError) as refused:
        call_command("ensure_keys", verbosity=0)
    return str(refused.value)


@pytest.mark.parametrize(
    "login", [{"TOKEN": openbao.ROOT_TOKEN}, {"ROLE_ID": "a-role", "SECRET_ID": "s"}]
)
def test_a_sealed_server_is_named_sealed(
    vault: str, settings: Settings, sealed_url: str, login: Any
) -> None:
    settings.VAULT = {"ADDR": sealed_url, **login}
    assert (
        refusal() == "Vault or OpenBao is sealed: unseal it (`bao operator unseal`, step 5 of "
        "docs/install.md)."
    )


def test_a_server_that_is_not_there_is_said_not_to_answer(vault: str, settings: Settings) -> None:
    settings.VAULT["ADDR"] = "http://127.0.0.1:9"
    assert refusal() == (
        "Vault or OpenBao does not answer (ConnectionError): check that it runs, and that "
        "VAULT_ADDR is correct."
    )


def test_a_refused_token_is_named(vault: str, settings: Settings) -> None:
    settings.VAULT["TOKEN"] = "wrong-token"
    assert refusal() == (
        "Vault or OpenBao refused the token (Forbidden): check VAULT_TOKEN or the login, and "
        "the policy (docs/keys/vault.md)."
    )


def test_a_refused_login_is_named(vault: str, settings: Settings) -> None:
    client: Any = hvac.Client(url=vault, token=openbao.ROOT_TOKEN)
    client.sys.enable_auth_method("approle", path="trouble")
    settings.VAULT = {
        "ADDR": vault,
        "ROLE_ID": "none",
        "SECRET_ID": "none",
        "AUTH_MOUNT": "trouble",
    }
    assert refusal().startswith(
        "Vault or OpenBao refused the login (InvalidRequest): check VAULT_ROLE_ID and"
    )
