"""How the `vault:` backend gets its token: by AppRole and as a pod, on a real server over TLS.

The policy is the one of docs/keys/vault.md that allows reading and signing only.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hvac
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hvac.exceptions import Forbidden
from pytest_django.fixtures import Settings

from agentauth.protocol.keys import PublicKey
from kms.backends import BackendError, BusyError, create, open_signer, public_key
from kms.backends import vault as backend
from tests import openbao
from tests.http_server import Quiet, serving

ROOT = Path(__file__).resolve().parents[2]


class _Cluster(Quiet):
    """A fake Kubernetes API: the one request that the key service makes, and a constant answer."""

    def do_POST(self) -> None:
        self.body()
        user = {"username": "system:serviceaccount:default:agentauth", "uid": "1"}
        self.say(201, {"status": {"authenticated": True, "user": user}})


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with serving(_Cluster) as url:
        yield url


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server over TLS, and the certificate to verify it with."""
    home = tmp_path_factory.mktemp("openbao-tls")
    with openbao.server(home, tls=True) as url:
        yield url, home / openbao.AUTHORITY


@pytest.fixture(scope="module")
def root(place: tuple[str, Path], cluster: str) -> Any:
    """The server's operator, with a policy and logins set up."""
    url, authority = place
    root: Any = hvac.Client(url=url, token=openbao.ROOT_TOKEN, verify=str(authority))
    root.sys.create_or_update_policy("agentauth", openbao.policies("docs/keys/vault.md")[0])
    root.sys.enable_auth_method("approle")
    root.write_data("auth/approle/role/agentauth", data=openbao.login_role("docs/install.md"))
    root.sys.enable_auth_method("kubernetes")
    root.write_data(
        "auth/kubernetes/config",
        data={
            "kubernetes_host": cluster,
            "disable_local_ca_jwt": True,
            "kubernetes_ca_cert": authority.read_text(),
        },
    )
    role = {
        "bound_service_account_names": "agentauth",
        "bound_service_account_namespaces": "default",
    }
    told = openbao.login_role("docs/kubernetes.md")
    # The test's service account and token, instead of the page's.
    del told["audience"]
    root.write_data("auth/kubernetes/role/agentauth", data=told | role)
    return root


@pytest.fixture
def operated(settings: Settings, place: tuple[str, Path], root: Any) -> dict[str, str]:
    """Configure the server, with its operator's token."""
    settings.KEY_BACKEND = "vault"
    named = {"ADDR": place[0], "CACERT": str(place[1]), "TOKEN": openbao.ROOT_TOKEN}
    settings.VAULT = named
    return named


@pytest.fixture
def made(operated: dict[str, str]) -> tuple[str, PublicKey]:
    """A key that the operator made."""
    return create(purpose="token")


@pytest.fixture
def approle(made: tuple[str, PublicKey], operated: dict[str, str], root: Any) -> dict[str, str]:
    """Configure a login by AppRole."""
    del operated["TOKEN"]
    operated["ROLE_ID"] = root.auth.approle.read_role_id("agentauth")["data"]["role_id"]
    operated["SECRET_ID"] = root.auth.approle.generate_secret_id("agentauth")["data"]["secret_id"]
    return operated


@pytest.fixture
def pod(made: tuple[str, PublicKey], operated: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Configure a login as a pod, with a service account token."""
    del operated["TOKEN"]
    operated |= {"KUBERNETES_ROLE": "agentauth", "KUBERNETES_TOKEN_FILE": str(tmp_path / "token")}
    now = int(time.time())
    claims = {
        "iss": "https://kubernetes.default.svc",
        "sub": "system:serviceaccount:default:agentauth",
        "nbf": now - 60,
        "iat": now - 60,
        "exp": now + 600,
        "kubernetes.io": {
            "namespace": "default",
            "serviceaccount": {"name": "agentauth", "uid": "1"},
        },
    }
    (tmp_path / "token").write_text(
        jwt.encode(claims, rsa.generate_private_key(65537, 2048), "RS256") + "\n"
    )
    return operated


@pytest.fixture
def logins(monkeypatch: pytest.MonkeyPatch) -> list[backend._Login]:
    """Each login that is made."""
    made: list[backend._Login] = []
    log_in = backend._Server._log_in

    def counted(self: backend._Server) -> backend._Login:
        made.append(log_in(self))
        return made[-1]

    monkeypatch.setattr(backend._Server, "_log_in", counted)
    return made


@pytest.mark.parametrize("way", ["approle", "pod"])
def test_vault_login_may_only_sign(
    request: pytest.FixtureRequest,
    made: tuple[str, PublicKey],
    way: str,
    logins: list[backend._Login],
) -> None:
    request.getfixturevalue(way)
    uri, public = made
    assert public_key(uri) == public
    for _ in range(3):
        public.verify(b"m", open_signer(uri, public).sign(b"m"), alg="EdDSA")
    assert len(logins) == 1
    assert logins[0].until - logins[0].at == pytest.approx(3600 * backend._USED)
    with pytest.raises(BackendError, match="Forbidden"):
        create(purpose="token")
    mine = logins[0].client
    with pytest.raises(Forbidden):
        mine.secrets.transit.export_key(name=uri.rpartition("/")[2], key_type="signing-key")
    assert mine.token not in repr(logins[0])


def check_limits(root: Any, mine: Any) -> None:
    """The token of this login has the registry's policy alone, and ends within the hour."""
    told = root.auth.token.lookup(mine.token)["data"]
    assert told["policies"] == ["agentauth"]
    with pytest.raises(Forbidden):
        mine.write_data("auth/token/renew-self", data={})
    with pytest.raises(Forbidden):
        mine.write_data("cubbyhole/a", data={"a": "b"})
    # Not even its operator can make it last longer.
    renewed = root.auth.token.renew(mine.token, increment="48h")["auth"]
    assert 0 < renewed["lease_duration"] <= 3600


@pytest.mark.parametrize(
    "page", ["docs/install.md", "docs/keys/vault.md", "deploy/openbao/openbao.hcl"]
)
def test_documented_login_has_no_other_policy_and_cannot_be_renewed(
    root: Any, place: tuple[str, Path], page: str
) -> None:
    root.write_data("auth/approle/role/documented", data=openbao.login_role(page))
    role = root.auth.approle.read_role_id("documented")["data"]["role_id"]
    secret = root.auth.approle.generate_secret_id("documented")["data"]["secret_id"]
    mine: Any = hvac.Client(url=place[0], verify=str(place[1]))
    mine.auth.approle.login(role, secret)
    check_limits(root, mine)


def test_documented_login_of_a_pod_has_no_other_policy_and_cannot_be_renewed(
    pod: dict[str, str], made: tuple[str, PublicKey], root: Any, logins: list[backend._Login]
) -> None:
    """The role is that of docs/kubernetes.md."""
    open_signer(*made).sign(b"m")
    check_limits(root, logins[0].client)


def test_login_is_renewed_before_it_expires(
    approle: dict[str, str],
    made: tuple[str, PublicKey],
    logins: list[backend._Login],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "_USED", 0.0)
    signer = open_signer(*made)
    signer.sign(b"m")
    before = len(logins)
    signer.sign(b"m")
    assert len(logins) > before


def test_revoked_token_is_replaced_but_not_by_a_login_at_every_refusal(
    approle: dict[str, str],
    made: tuple[str, PublicKey],
    root: Any,
    logins: list[backend._Login],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signer = open_signer(*made)
    signer.sign(b"m")
    root.auth.token.revoke(logins[0].client.token)
    monkeypatch.setattr(backend, "_SECOND_LOGIN_SECONDS", 3600.0)
    with pytest.raises(BackendError, match="Forbidden"):
        signer.sign(b"m")
    assert len(logins) == 1
    monkeypatch.setattr(backend, "_SECOND_LOGIN_SECONDS", 0.0)
    made[1].verify(b"m", signer.sign(b"m"), alg="EdDSA")
    assert len(logins) == 2


def test_threads_that_come_at_once_share_one_login(
    approle: dict[str, str], made: tuple[str, PublicKey], logins: list[backend._Login]
) -> None:
    signer = open_signer(*made)
    with ThreadPoolExecutor(8) as pool:
        assert len({bytes(signature) for signature in pool.map(signer.sign, [b"m"] * 8)}) == 1
    assert len(logins) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"SECRET_ID": "a-wrong-secret-id"}, "InvalidRequest"),
        ({"ROLE_ID": "a-wrong-role-id"}, "InvalidRequest"),
        ({"AUTH_MOUNT": "elsewhere"}, "Forbidden"),
        ({"ROLE_ID": ""}, "Set VAULT_TOKEN"),
        (
            {"ROLE_ID": "", "KUBERNETES_ROLE": "agentauth", "KUBERNETES_TOKEN_FILE": "/nowhere"},
            "cannot be read",
        ),
    ],
)
def test_KM_14_a_login_that_fails_shows_nothing_of_it(
    approle: dict[str, str],
    made: tuple[str, PublicKey],
    caplog: pytest.LogCaptureFixture,
    change: dict[str, str],
    says: str,
) -> None:
    approle |= change
    caplog.set_level(logging.DEBUG)
    with pytest.raises(BackendError, match=says) as refused:
        open_signer(*made).sign(b"m")
    shown = str(refused.value) + caplog.text
    assert not [
        value for name in ("SECRET_ID", "ROLE_ID") if (value := approle[name]) and value in shown
    ]


def test_a_login_is_not_written_to_the_log(
    approle: dict[str, str],
    made: tuple[str, PublicKey],
    logins: list[backend._Login],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("", "urllib3"):
        # Another key backend silences this logger.
        caplog.set_level(logging.DEBUG, logger=name)
    open_signer(*made).sign(b"m")
    hidden = (approle["SECRET_ID"], approle["ROLE_ID"], logins[0].client.token)
    assert "POST" in caplog.text
    assert not [value for value in hidden if value in caplog.text]


def test_a_server_that_cannot_prove_its_name_gets_no_token(
    operated: dict[str, str], made: tuple[str, PublicKey]
) -> None:
    del operated["CACERT"]
    with pytest.raises(BusyError, match="SSLError"):
        open_signer(*made).sign(b"m")


def test_keys_are_in_the_namespace_that_settings_name(operated: dict[str, str], root: Any) -> None:
    root.write_data("sys/namespaces/team", data={})
    inside: Any = hvac.Client(
        url=operated["ADDR"], token=openbao.ROOT_TOKEN, namespace="team", verify=operated["CACERT"]
    )
    inside.sys.enable_secrets_engine("transit")
    operated["NAMESPACE"] = "team"
    uri, public = create(purpose="token")
    public.verify(b"m", open_signer(uri, public).sign(b"m"), alg="EdDSA")
    del operated["NAMESPACE"]
    with pytest.raises(BackendError, match="InvalidPath"):
        public_key(uri)


FORKS = """
import os, sys, django
django.setup()
from kms.backends.vault import VaultBackend, _servers
key = VaultBackend().open(sys.argv[1])
public = key.public()
child = os.fork()
for _ in range(20):
    public.verify(b"m", key.sign(b"m", public.alg), alg=public.alg)
assert len(_servers) == (1 if child else 2)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_process_that_forks_has_connections_of_its_own_in_both_halves(
    operated: dict[str, str], made: tuple[str, PublicKey]
) -> None:
    """gunicorn forks; a shared connection would mix up the signatures of both processes."""
    env = {**os.environ, **{f"VAULT_{name}": value for name, value in operated.items()}}
    command = [sys.executable, "-c", FORKS, made[0]]
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=60)
