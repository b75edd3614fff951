"""Duplicate headers and ambiguous bodies, sent as raw bytes: no client library would send them."""

import base64
import json
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from agentauth.protocol.agent_manifest import sign_manifest
from agentauth.protocol.capability import Capability
from registry.tests.cast import AgentClient
from tests.live import LiveRegistry

pytestmark = [pytest.mark.flow, pytest.mark.production]


@dataclass
class Raw:
    """A live registry addressed in raw bytes."""

    registry: LiveRegistry
    agent: AgentClient
    secret: str
    client_id: str
    audience: str

    def ask(
        self, head: list[str], body: bytes = b"", *, length: bool = True
    ) -> tuple[int, dict[str, Any]]:
        there = urlsplit(self.registry.url)
        lines = [*head, f"Host: {there.netloc}", "Connection: close"]
        lines += [f"Content-Length: {len(body)}"] if length else []
        connection = socket.create_connection((there.hostname, there.port), timeout=60)
        if there.scheme == "https":
            connection = ssl.create_default_context().wrap_socket(
                connection, server_hostname=there.hostname
            )
        with connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))
        status = re.match(rb"HTTP/1\.[01] (\d+)", answer)
        assert status, answer[:200]
        payload = answer.partition(b"\r\n\r\n")[2]
        return int(status[1]), json.loads(payload) if payload.startswith(b"{") else {}

    def proof(self, method: str, path: str, body: bytes = b"") -> str:
        return self.agent.proof(method, path, body, url=self.registry.url + path)

    @property
    def verify(self) -> bytes:
        """The body of a question."""
        return json.dumps(
            {"token": "x", "proof": "x", "method": "GET", "url": self.audience}
        ).encode()

    def basic(self, secret: str = "") -> str:
        return base64.b64encode(f"{self.client_id}:{secret or self.secret}".encode()).decode()


@pytest.fixture(scope="module")
def raw(sqlite_registry: LiveRegistry) -> Raw:
    audience = f"{sqlite_registry.services}/raw"
    made = sqlite_registry.manage("create_service_provider", "Raw", "--audience", audience)
    agent = AgentClient()
    found = Raw(sqlite_registry, agent, made["client_secret"], made["client_id"], audience)
    manifest = _manifest(agent, sqlite_registry.url)
    body = json.dumps({"manifest": manifest}).encode()
    head = [
        "POST /v1/agents HTTP/1.1",
        f"DPoP: {found.proof('POST', '/v1/agents', body)}",
        "Content-Type: application/json",
    ]
    assert found.ask(head, body)[0] == 201
    return found


def _manifest(agent: AgentClient, issuer: str) -> str:
    now = int(time.time())
    return sign_manifest(
        agent.signer,
        audience=issuer,
        issued_at=now,
        expires_at=now + 86_400,
        jti="raw",
        name="Raw",
        description="",
        model_origin="models.example",
        capabilities=[Capability.read("calendar")],
    )


def test_DJ_2_one_header_of_each_name_is_answered(raw: Raw) -> None:
    """The valid request that the next test breaks."""
    assert (
        raw.ask(["GET /v1/agents/me HTTP/1.1", f"DPoP: {raw.proof('GET', '/v1/agents/me')}"])[0]
        == 200
    )
    head = [
        "POST /v1/verify HTTP/1.1",
        f"Authorization: Basic {raw.basic()}",
        "Content-Type: application/json",
    ]
    assert raw.ask(head, raw.verify)[0] == 200


TWICE: dict[str, Callable[[Raw], tuple[list[str], bytes]]] = {
    "two good proofs": lambda raw: (
        [
            "GET /v1/agents/me HTTP/1.1",
            *(f"DPoP: {raw.proof('GET', '/v1/agents/me')}" for _ in range(2)),
        ],
        b"",
    ),
    "one proof twice": lambda raw: (
        ["GET /v1/agents/me HTTP/1.1", *[f"DPoP: {raw.proof('GET', '/v1/agents/me')}"] * 2],
        b"",
    ),
    "a good and an empty proof": lambda raw: (
        ["GET /v1/agents/me HTTP/1.1", f"DPoP: {raw.proof('GET', '/v1/agents/me')}", "DPoP:"],
        b"",
    ),
    "two spellings of the name": lambda raw: (
        [
            "GET /v1/agents/me HTTP/1.1",
            *(f"{name}: {raw.proof('GET', '/v1/agents/me')}" for name in ("DPoP", "dpop")),
        ],
        b"",
    ),
    "two credentials": lambda raw: (
        [
            "POST /v1/verify HTTP/1.1",
            *[f"Authorization: Basic {raw.basic()}"] * 2,
            "Content-Type: application/json",
        ],
        raw.verify,
    ),
    "good and bad credentials": lambda raw: (
        [
            "POST /v1/verify HTTP/1.1",
            f"Authorization: Basic {raw.basic()}",
            f"Authorization: Basic {raw.basic('x')}",
            "Content-Type: application/json",
        ],
        raw.verify,
    ),
    "a proof and credentials": lambda raw: (
        [
            "POST /v1/revoke HTTP/1.1",
            f"DPoP: {raw.proof('POST', '/v1/revoke', b'token=x')}",
            f"Authorization: Basic {raw.basic()}",
            "Content-Type: application/x-www-form-urlencoded",
        ],
        b"token=x",
    ),
    "two keys of one act": lambda raw: (
        [
            "DELETE /v1/agents/me HTTP/1.1",
            f"DPoP: {raw.proof('DELETE', '/v1/agents/me')}",
            "Idempotency-Key: a",
            "Idempotency-Key: b",
        ],
        b"",
    ),
    "two hosts": lambda _: (["GET /health/live HTTP/1.1", "Host: evil.example"], b""),
    "two media types": lambda raw: (
        [
            "POST /v1/verify HTTP/1.1",
            f"Authorization: Basic {raw.basic()}",
            "Content-Type: application/json",
            "Content-Type: text/plain",
        ],
        raw.verify,
    ),
}


@pytest.mark.parametrize("make", TWICE.values(), ids=TWICE)
def test_DJ_2_two_headers_of_one_name_are_refused(
    make: Callable[[Raw], tuple[list[str], bytes]], raw: Raw
) -> None:
    head, body = make(raw)
    status, answer = raw.ask(head, body)
    assert 400 <= status < 500, answer
    assert answer.get("error") in {
        "invalid_request",
        "invalid_dpop_proof",
        "invalid_client",
        "unsupported_media_type",
        None,
    }
    # The agent that the request asked to end still exists.
    assert (
        raw.ask(["GET /v1/agents/me HTTP/1.1", f"DPoP: {raw.proof('GET', '/v1/agents/me')}"])[0]
        == 200
    )


SMUGGLED = {
    "two lengths": ["Content-Length: 0", "Content-Length: 5"],
    "length and chunks": ["Content-Length: 5", "Transfer-Encoding: chunked"],
    "chunked twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "chunked by another name": ["Transfer-Encoding: xchunked"],
    "a length that is no number": ["Content-Length: +5"],
    "a length before a space": ["Content-Length : 5"],
}


@pytest.mark.parametrize("lines", SMUGGLED.values(), ids=SMUGGLED)
def test_DJ_2_DJ_7_two_readings_of_a_bodys_length_are_refused(lines: list[str], raw: Raw) -> None:
    head = [
        "POST /v1/verify HTTP/1.1",
        f"Authorization: Basic {raw.basic()}",
        "Content-Type: application/json",
        *lines,
    ]
    status, _ = raw.ask(head, b"0\r\n\r\n", length=False)
    assert 400 <= status < 600
    # gunicorn answers 501 to an unknown transfer coding before our code runs.
    assert status < 500 or status == 501
