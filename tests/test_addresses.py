"""Hostile addresses in every field that takes one: refused on input, and never contacted."""

import json
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

import pytest
from django.conf import settings as project
from django.core.management import CommandError, call_command

from agentauth.checks import production_is_safe
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.jose import sign_compact
from agentauth.protocol.keys import LocalSigner, PrivateKey
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.service_providers import change_audience, create_service_provider
from registry.tests.cast import TESTER, AgentClient, approved, assert_refused, basic, issue

pytestmark = pytest.mark.django_db

SCHEMES = [
    "http://sp.example", "file:///etc/passwd", "ftp://sp.example/x", "data:text/plain,x",
    "gopher://127.0.0.1:6379/_INFO",
    "javascript:alert(1)", "ldap://127.0.0.1", "//sp.example",
]  # fmt: skip
HOSTS = [
    "127.0.0.1", "[::1]", "0.0.0.0", "169.254.169.254", "[fd00::1]", "[fe80::1]", "10.0.0.1",
    "172.16.0.1", "192.168.0.1",
    "100.64.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "224.0.0.1", "0x7f000001", "2130706433",
    "127.1", "0177.0.0.1",
    "localhost", "localhost.", "sp.localhost", "sp.example.", "①②⑦.0.0.1", "127。0。0。1",
]  # fmt: skip
HOSTILE = [*SCHEMES, *(f"https://{host}" for host in HOSTS)]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """All attempted connections and look-ups: none, at the end of each test."""
    tried: list[Any] = []

    def trapped(*arguments: Any, **_named: Any) -> NoReturn:
        tried.append(arguments)
        raise OSError("the network is out of bounds")

    for owner, name in [
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
        (socket.socket, "sendto"),
        (socket, "getaddrinfo"),
        (socket, "gethostbyname"),
        (socket, "create_connection"),
    ]:
        monkeypatch.setattr(owner, name, trapped)
    yield tried
    assert tried == []


def test_the_trap_holds(asked: list[Any]) -> None:
    with pytest.raises(OSError, match="out of bounds"):
        socket.create_connection(("127.0.0.1", 9))
    with pytest.raises(OSError, match="out of bounds"), socket.socket() as one:
        one.connect(("127.0.0.1", 9))
    assert len(asked) == 2
    asked.clear()


@pytest.fixture
def production(settings: Any) -> None:
    settings.DEVELOPMENT, settings.ISSUER = False, "https://registry.example"


def test_SS_1_SS_2_no_service_provider_lives_there(production: None, now: datetime) -> None:
    found, _ = create_service_provider(
        name="Acme", audience="https://sp.example", actor=TESTER, now=now
    )
    for address in HOSTILE:
        with pytest.raises(InvalidRequestError):
            create_service_provider(name="Acme", audience=address, actor=TESTER, now=now)
        with pytest.raises(CommandError):
            call_command("create_service_provider", "Acme", "--audience", address)
        with pytest.raises(InvalidRequestError):
            change_audience(service_provider=found, audience=address, actor=TESTER, now=now)
    assert ServiceProvider.objects.get().audience == "https://sp.example"


@pytest.mark.parametrize(
    "host", ["sp.example", "4.sp.example", "xn--bcher-kva.example", "8.8.8.8", "[2600::1]"]
)
def test_SS_2_names_and_public_addresses_are_taken(
    host: str, production: None, now: datetime
) -> None:
    assert create_service_provider(name="Acme", audience=f"https://{host}", actor=TESTER, now=now)


def test_SS_1_SS_2_no_model_comes_from_there() -> None:
    client = AgentClient()
    for origin in [*HOSTILE, *(host for host in HOSTS if "localhost" not in host)]:
        answer = client.register(manifest=manifest(client, model_origin=origin))
        assert (
            "model_origin" in assert_refused(answer, 400, "invalid_manifest")["error_description"]
        ), origin
    assert not Agent.objects.exists()
    assert client.register(manifest=manifest(client)).status_code == 201


def manifest(client: AgentClient, **claims: Any) -> str:
    """Signed without the SDK's own checks, which would refuse it."""
    now = int(time.time())
    body = {
        "aud": project.ISSUER,
        "iat": now,
        "exp": now + 86_400,
        "jti": "j" * 22,
        "name": "Reader",
        "description": "",
    }
    body |= {
        "capabilities": [{"type": "read", "resource": "calendar"}],
        "model_origin": "models.example",
    } | claims
    return sign_compact(
        body,
        client.signer,
        typ="agent-manifest+jwt",
        header={"jwk": dict(client.signer.public.jwk)},
    )


def test_SS_1_SS_2_a_proof_for_there_is_good_nowhere(agent: AgentClient) -> None:
    for number, address in enumerate([*HOSTILE, f"{project.PUBLIC_URL}/v1/agents/me"]):
        claims = {"htm": "GET", "htu": address, "iat": int(time.time()), "jti": f"j{number}"}
        header = {"jwk": dict(agent.signer.public.jwk)}
        proof = sign_compact(claims, agent.signer, typ="dpop+jwt", header=header)
        answer = agent.call("GET", "/v1/agents/me", proof=proof)
        if address in HOSTILE:
            assert_refused(answer, 401, "invalid_dpop_proof")
        else:
            assert answer.status_code == 200


@pytest.fixture
def grant(
    agent: AgentClient, service_provider: ServiceProvider, token_key: None, now: datetime
) -> Grant:
    return approved(agent, service_provider, now=now)


Provider = tuple[ServiceProvider, str]


def ask(agent: AgentClient, at: Provider, **members: Any) -> Any:
    headers = basic(*at)
    body = {"method": "GET", "url": f"{at[0].audience}/x"} | members
    return agent.client.post(
        "/v1/verify", json.dumps(body), content_type="application/json", headers=headers
    )


def test_SS_1_SS_2_no_call_to_there_is_allowed(
    agent: AgentClient, grant: Grant, provider_and_secret: Provider
) -> None:
    token = issue(agent, grant).json()["access_token"]
    good = f"{provider_and_secret[0].audience}/x"
    for address in [*HOSTILE, good]:
        proof = agent.proof("GET", "", url=good, access_token=token)
        answer = ask(agent, provider_and_secret, token=token, proof=proof, url=address).json()
        if address in HOSTILE:
            assert answer.get("valid", False) is False
            assert answer["error"] in {"invalid_dpop_proof", "invalid_request"}, address
        else:
            assert answer["valid"] is True


LURES: dict[str, object] = {
    "jku": "http://169.254.169.254/latest/meta-data/",
    "x5u": "http://[::1]:9/chain.pem",
    "x5c": ["MIIB"],
    "kid": "http://2130706433/key",
}


def test_SS_1_DP_84_key_locations_in_headers_are_never_followed(
    agent: AgentClient, grant: Grant, alice: Human, provider_and_secret: Provider
) -> None:
    """In each object we read (proof, manifest, key change, token); some pass, for their own key."""
    lured = LURES | {"jwk": dict(agent.signer.public.jwk)}
    now = int(time.time())
    claims = {"htm": "GET", "htu": f"{project.PUBLIC_URL}/v1/agents/me", "iat": now, "jti": "j"}
    proof = sign_compact(claims, agent.signer, typ="dpop+jwt", header=lured)
    assert agent.call("GET", "/v1/agents/me", proof=proof).status_code in {200, 401}
    stranger = AgentClient()
    own = LURES | {"jwk": dict(stranger.signer.public.jwk)}
    body = {"manifest": sign_compact({}, stranger.signer, typ="agent-manifest+jwt", header=own)}
    assert stranger.call("POST", "/v1/agents", body).status_code == 400
    new = LocalSigner(PrivateKey.generate("EdDSA"))
    change = sign_compact(
        {}, new, typ="agent-key+jwt", header=LURES | {"jwk": dict(new.public.jwk)}
    )
    assert agent.call("POST", "/v1/agents/me/key", {"new_key": change}).status_code == 400
    for header in (LURES, {name: value for name, value in lured.items() if name != "kid"}):
        token = sign_compact({"iss": project.ISSUER}, agent.signer, typ="at+jwt", header=header)
        assert (
            ask(agent, provider_and_secret, token=token, proof=proof).json()["error"]
            == "invalid_token"
        )
        for path in ("/v1/introspect", "/v1/revoke"):
            form = "application/x-www-form-urlencoded"
            headers = basic(*provider_and_secret)
            assert (
                agent.client.post(
                    path, f"token={token}", content_type=form, headers=headers
                ).status_code
                == 200
            )


@pytest.mark.parametrize(
    "address", [*SCHEMES, "http://169.254.169.254", "http://10.0.0.1:8200", "http://127.1:8200"]
)
def test_SS_1_no_key_service_lives_there(address: str, settings: Any) -> None:
    settings.DEVELOPMENT, settings.KEY_BACKEND = False, "vault"
    settings.VAULT = {"ADDR": address, "TOKEN": "token"}
    assert "agentauth.E009" in {error.id for error in production_is_safe()}
