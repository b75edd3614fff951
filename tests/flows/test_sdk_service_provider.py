"""A real service provider (gunicorn, Django, the decorator), called by agents and others."""

import asyncio
import http.client
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth import AgentAuthClient, Capability
from agentauth.protocol.dpop import make_proof
from agentauth.sdk.registry_http import ssl_context
from examples.demo.__main__ import listen, service_provider
from tests.certificates import self_signed
from tests.flows.test_sdk_client import decide
from tests.live import START_SECONDS, LiveRegistry
from tests.production.registry import ProductionRegistry
from tests.time_limits import HANGS_SECONDS

pytestmark = [pytest.mark.flow, pytest.mark.production]

CHALLENGE = 'DPoP error="{}", algs="EdDSA Ed25519 ES256"'


class Place:
    """The demo service provider on its own port, and an agent with an approved grant there.

    With the installed registry it has a host name and uses TLS.
    """

    certificate: Path | None = None

    def __init__(self, registry: LiveRegistry, directory: Path, *options: str) -> None:
        self.registry, self.host = registry, "127.0.0.1"
        # From now on, so that nothing else takes the port meanwhile.
        self._listening = listen("127.0.0.1", 0)
        self.port = self._listening.getsockname()[1]
        tls: dict[str, str] = {}
        if isinstance(registry, ProductionRegistry):
            self.host = f"shop-{secrets.token_hex(4)}.example.org"
            self.certificate = self_signed(directory, self.host)
            tls["certificate"] = str(self.certificate)
            tls["certificate_key"] = str(self.certificate.with_suffix(".key"))
        self.audience = f"{'https' if tls else 'http'}://{self.host}:{self.port}"
        allow = ["read:calendar", "transact:payments"]
        made = registry.manage(
            "create_service_provider",
            "Shop",
            "--audience",
            self.audience,
            "--allow",
            *allow,
            *options,
        )
        self.slug: str = made["slug"]
        self.file = directory / "service_provider.json"
        self.credentials = made | tls | {"audience": self.audience, "registry_url": registry.url}
        self.file.write_text(json.dumps(self.credentials))
        self.client = AgentAuthClient(registry.url, key_file=directory / "agent.json")
        capabilities = [
            Capability.read("calendar"),
            Capability.transact("payments", max_amount=("50.00", "EUR")),
        ]
        self.grant_id = asyncio.run(self.client.request_grant(self.slug, capabilities)).grant_id
        decide(registry, "approve", self.grant_id)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Running, and resolved and trusted by this process under its name."""
        resolve = socket.getaddrinfo

        def resolved(host: Any, *others: Any, **more: Any) -> Any:
            ours = host in {self.host, self.host.encode()}
            return resolve("127.0.0.1" if ours else host, *others, **more)

        with pytest.MonkeyPatch.context() as patch:
            if self.certificate:
                both = self.certificate.with_name("trusted.pem")
                both.write_text(
                    Path(os.environ["SSL_CERT_FILE"]).read_text() + self.certificate.read_text()
                )
                patch.setenv("SSL_CERT_FILE", str(both))
                patch.setattr(socket, "getaddrinfo", resolved)
                # It is cached for the process.
                ssl_context.cache_clear()
            # A busy machine takes longer to start it than a person would wait.
            patch.setattr("examples.demo.__main__.START_SECONDS", START_SECONDS)
            with service_provider(self.file, self._listening):
                yield
        ssl_context.cache_clear()

    def headers(self, method: str, path: str) -> dict[str, str]:
        return asyncio.run(self.client.authenticate_headers(self.slug, method, path))

    def ask(self, method: str, path: str, headers: dict[str, str], **more: Any) -> httpx.Response:
        verify = httpx.create_ssl_context()
        return httpx.request(
            method,
            self.audience + path,
            headers=headers,
            trust_env=False,
            verify=verify,
            timeout=HANGS_SECONDS,
            **more,
        )

    def raw(
        self, path: str, lines: list[tuple[str, str]], *, host: str = ""
    ) -> tuple[int, str, dict[str, Any]]:
        """GET with these exact headers, duplicates included; status, challenge and body."""
        kind = http.client.HTTPSConnection if self.certificate else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=HANGS_SECONDS)
        connection.putrequest("GET", path, skip_host=bool(host))
        for name, value in ([("Host", host)] if host else []) + lines:
            connection.putheader(name, value)
        connection.endheaders()
        with closing(connection), connection.getresponse() as answer:
            return (
                answer.status,
                answer.headers.get("WWW-Authenticate", ""),
                json.loads(answer.read()),
            )


@pytest.fixture(scope="module")
def place(
    sqlite_registry: LiveRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    made = Place(sqlite_registry, tmp_path_factory.mktemp("place"))
    with made.serving():
        yield made


def test_an_allowed_request_is_served(place: Place) -> None:
    answer = place.ask("GET", "/calendar/work?day=1", place.headers("GET", "/calendar/work?day=1"))
    assert answer.status_code == 200
    assert answer.json()["events"]


def test_VB_13_the_same_token_as_bearer_is_refused(place: Place) -> None:
    headers = place.headers("GET", "/calendar/work")
    headers["Authorization"] = headers["Authorization"].replace("DPoP ", "Bearer ")
    for proof in (True, False):
        answer = place.ask("GET", "/calendar/work", headers if proof else headers | {"DPoP": ""})
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_token")
        assert answer.headers["WWW-Authenticate"] == CHALLENGE.format("invalid_token")


def test_DJ_2_DP_2_two_lines_of_a_header_are_refused_through_a_real_server(place: Place) -> None:
    path = "/calendar/work"
    headers, again = place.headers("GET", path), place.headers("GET", path)
    token, proof = ("Authorization", headers["Authorization"]), ("DPoP", headers["DPoP"])
    for second in (proof, ("DPoP", again["DPoP"]), ("dpop", headers["DPoP"])):
        status, challenge, body = place.raw(path, [token, proof, second])
        assert (status, body["error"]) == (401, "invalid_dpop_proof")
        assert challenge == CHALLENGE.format("invalid_dpop_proof")
    for other in (token, ("Authorization", token[1].replace("DPoP ", "Bearer "))):
        status, _, body = place.raw(path, [token, other, proof])
        assert (status, body["error"]) == (400, "invalid_request")
    # None of these spent the proof: sent once, it still passes.
    assert place.raw(path, [token, proof])[0] == 200


def test_DJ_3_the_verdict_rests_on_the_audience_and_never_on_the_host(place: Place) -> None:
    path = "/calendar/work"
    assert place.raw(path, [*place.headers("GET", path).items()], host="evil.example")[0] == 200
    # A proof for an attacker's address is refused, whatever Host comes with it.
    headers = place.headers("GET", path)
    token = headers["Authorization"].removeprefix("DPoP ")
    headers["DPoP"] = make_proof(
        place.client._life.signer,
        method="GET",
        url=f"http://evil.example{path}",
        iat=int(time.time()),
        jti="for-a-stranger",
        access_token=token,
    )
    status, _, body = place.raw(path, [*headers.items()], host="evil.example")
    assert (status, body["error"], body["reason"]) == (401, "invalid_dpop_proof", "url")


def test_the_path_as_sent_is_what_the_proof_must_name(place: Place) -> None:
    answer = place.ask("GET", "/calendar%2Fwork", place.headers("GET", "/calendar/work"))
    assert answer.status_code in {401, 404}
    answer = place.ask("GET", "/calendar/home%2Fwork", place.headers("GET", "/calendar/home/work"))
    assert (answer.status_code, answer.json()["reason"]) == (401, "url")
    answer = place.ask(
        "GET", "/calendar/home%2fwork", place.headers("GET", "/calendar/home%2Fwork")
    )
    assert answer.status_code == 200


def test_another_resource_is_403_and_too_much_is_403_with_the_limit(place: Place) -> None:
    answer = place.ask("GET", "/files/x", place.headers("GET", "/files/x"))
    assert (answer.status_code, answer.json()["error"]) == (403, "insufficient_scope")
    order = {"amount": {"value": "50.01", "currency": "EUR"}, "payee": "ACME"}
    headers = place.headers("POST", "/payments") | {"Idempotency-Key": "too-much"}
    answer = place.ask("POST", "/payments", headers, json=order)
    assert answer.json()["violations"] == [
        {
            "argument": "amount",
            "operator": "max_amount",
            "limit": {"value": "50.00", "currency": "EUR"},
        }
    ]
    assert len(answer.content) <= 1024


def test_a_payment_is_made_once_whatever_is_tried_again(place: Place) -> None:
    order = {"amount": {"value": "10.00", "currency": "EUR"}, "payee": "ACME"}

    def pay(key: str | None, **changes: Any) -> httpx.Response:
        headers = place.headers("POST", "/payments") | ({"Idempotency-Key": key} if key else {})
        return place.ask("POST", "/payments", headers, json=order | changes)

    assert pay("once").status_code == 201
    again = pay("once")
    assert (again.status_code, again.json()["error"]) == (409, "already_processed")
    other = pay("once", amount={"value": "11.00", "currency": "EUR"})
    assert (other.status_code, other.json()["error"]) == (409, "idempotency_mismatch")
    nameless = pay(None)
    assert (nameless.status_code, nameless.json()["error"]) == (400, "invalid_request")


def test_the_sdk_s_own_call_gets_through(place: Place) -> None:
    order = {"amount": {"value": "10.00", "currency": "EUR"}, "payee": "ACME"}
    answer = asyncio.run(place.client.call(place.slug, "POST", "/payments", json=order))
    assert answer.status_code == 201


def test_a_registry_that_is_away_is_503_for_the_agent(place: Place, tmp_path: Path) -> None:
    listening = listen("127.0.0.1", 0)
    audience = f"http://127.0.0.1:{listening.getsockname()[1]}"
    file = tmp_path / "service_provider.json"
    headers = place.headers("GET", "/calendar/work")
    # A port that is held, so that no other test's server takes it, but where nothing listens.
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        registry_url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        credentials = place.credentials | {"audience": audience, "registry_url": registry_url}
        # The agent asks it without TLS.
        credentials.pop("certificate", None)
        file.write_text(json.dumps(credentials))
        with service_provider(file, listening):
            answer = httpx.get(
                f"{audience}/calendar/work",
                headers=headers,
                trust_env=False,
                timeout=HANGS_SECONDS,
            )
    assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
    assert answer.headers["Retry-After"] == "1"
    assert "WWW-Authenticate" not in answer.headers
