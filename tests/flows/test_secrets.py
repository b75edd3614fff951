"""A short full run, then a search: neither database nor log contains a usable secret.

The server is the test's own, logs as much as possible in each format, and its whole database is
read.
"""

import json
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth.protocol.agent_manifest import sign_manifest
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.keys import LocalSigner, PrivateKey
from approvals.tests.authenticator import Authenticator
from tests.actors import Scene, drawn_in, may_pay, shown_in
from tests.live import LiveRegistry
from tests.sampling import one_in

pytestmark = pytest.mark.flow

READ: dict[str, Any] = {"type": "read", "resource": "calendar"}
PAY = may_pay("50.00")
LIMITS = {"confirm_above": {"value": "20.00", "currency": "EUR"}}


@dataclass
class Browser:
    """A user with a passkey at a live registry."""

    registry: LiveRegistry
    kept: list[str]
    device: Authenticator = field(init=False)
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.device = Authenticator(origin=self.registry.url)
        headers = {"Origin": self.registry.url, "Sec-Fetch-Site": "same-origin"}
        self.http = httpx.Client(base_url=self.registry.url, headers=headers, timeout=30)

    def page(self, path: str) -> str:
        answer = self.http.get(path, headers={"Accept": "text/html"})
        assert answer.status_code == 200, (path, answer.status_code)
        found = re.search(r'name="csrf-token" content="([^"]+)"', answer.text)
        assert found
        self.http.headers["X-CSRFToken"] = found[1]
        return answer.text

    def post(self, path: str, body: object = None, status: int = 200) -> Any:
        answer = self.http.post(path, json=body or {})
        assert answer.status_code == status, (path, answer.text)
        return answer.json()

    def come_in(self, url: str) -> None:
        path = url.removeprefix(self.registry.url)
        self.page(path)
        options = self.post(f"{path}options", {"name": "Alice", "email": "alice@example.org"})
        self.post(f"{path}finish", {"credential": self.device.registration(options["publicKey"])})
        self.kept.append(self.http.cookies["agentauth_session"])

    def sign(self, path: str, body: dict[str, str]) -> Any:
        body = body | {"drawn": drawn_in(self.page(path))}
        options = self.post(f"{path}statement", body)["publicKey"]
        credential = self.device.assertion(options)
        # One failure first: a refusal must not reveal secrets either.
        self.post(f"{path}decide", {"credential": credential | {"id": "AAAA"}}, 400)
        options = self.post(f"{path}statement", body)["publicKey"]
        return self.post(f"{path}decide", {"credential": self.device.assertion(options)})


def run(registry: LiveRegistry) -> list[str]:
    """From the first administrator to a confirmed payment and a revoked agent; all secrets used."""
    kept: list[str] = []
    human = Browser(registry, kept)
    setup = registry.manage("setup_link")["url"]
    kept.append(setup.split("/")[-2])
    human.come_in(setup)
    provider = registry.manage(
        "create_service_provider",
        "Acme",
        "--audience",
        "http://127.0.0.1:8001",
        "--allow",
        "read:calendar",
        "transact:payments",
    )
    kept.append(provider["client_secret"])
    key = PrivateKey.generate("EdDSA")
    kept += [line for line in key.to_pem().decode().splitlines() if "-----" not in line]
    agent = Kept(
        registry,
        agent_id="",
        human_id="",
        grant_id="",
        audience="http://127.0.0.1:8001",
        client_id=provider["client_id"],
        client_secret=provider["client_secret"],
        signer=LocalSigner(key),
    )
    agent.kept = kept
    now = int(time.time())
    manifest = sign_manifest(
        agent.signer,
        audience=registry.url,
        issued_at=now,
        expires_at=now + 86_400,
        jti=secrets.token_urlsafe(16),
        name="Research Assistant",
        description="Reads",
        model_origin="models.example",
        capabilities=parse_capabilities([READ, PAY]),
    )
    made = agent.api("POST", "/v1/agents", {"manifest": manifest}).json()
    agent.agent_id = made["agent_id"]
    claim = made["claim_url"].removeprefix(registry.url)
    kept += [claim.split("/")[2], made["claim_code"]]
    drawn = drawn_in(human.page(claim))
    human.post(f"{claim}statement", {"code": "WRONG000", "drawn": drawn}, 400)
    human.sign(claim, {"code": made["claim_code"]})
    asked = {"service_provider": "acme", "capabilities": [READ, PAY], "envelope": LIMITS}
    answer = agent.api("POST", "/v1/grants", asked)
    assert answer.status_code == 201, answer.text
    agent.grant_id = answer.json()["grant_id"]
    approve(human, agent.grant_id)
    token = agent.token()
    kept.append(token)
    spend(agent, human, token)
    wrong_and_refused(agent, human, token)
    return kept


def approve(human: Browser, grant_id: str) -> None:
    path = f"/approvals/{grant_id}/"
    drawn = drawn_in(human.page(path))
    body = {"choices": {"permission.0": "on", "permission.1": "on"}, "drawn": drawn}
    human.post(f"{path}second-step", body)
    options = human.post(f"{path}statement", body | {"decision": "approve"})["publicKey"]
    human.post(f"{path}decide", {"credential": human.device.assertion(options)})


def spend(agent: "Kept", human: Browser, token: str) -> None:
    pay = {
        "type": "transact",
        "resource": "payments",
        "amount": {"value": "30.00", "currency": "EUR"},
    }
    first = agent.ask(agent.question(token, pay, idempotency_key="operation-one")).json()
    assert first["reason"] == "confirm_above", first
    path = f"/confirmations/{first['confirmation_id']}/"
    human.sign(path, {"decision": "confirm"})
    paid = agent.ask(agent.question(token, pay, idempotency_key="operation-one")).json()
    assert paid["valid"] is True, paid


def wrong_and_refused(agent: "Kept", human: Browser, token: str) -> None:
    read = {"type": "read", "resource": "calendar"}
    proof = agent.proof(token)
    for _ in range(2):  # the second is a replay
        agent.ask(agent.question(token, read, proof=proof))
    agent.ask(agent.question(token + "x", read))
    agent.ask(agent.question(token, None, proof="nonsense"))
    agent.api("POST", "/v1/tokens", {"grant_id": agent.grant_id}, **{"Idempotency-Key": "k1"})
    httpx.post(
        f"{agent.registry.url}/v1/verify",
        json={},
        auth=(agent.client_id, "wrong-" + agent.client_secret),
        timeout=30,
    )
    httpx.get(
        f"{agent.registry.url}/v1/agents/me",
        headers={"Authorization": f"DPoP {token}", "DPoP": proof},
        timeout=30,
    )
    httpx.get(f"{agent.registry.url}/v1/agents/me?token={token}", timeout=30)
    human.page("/settings/")
    path = "/settings/enrolment-codes"
    options = human.post("/verify/options", {"act": path})["publicKey"]
    signed = json.dumps(human.device.assertion(options))
    settings = human.http.post(path, data={"verification": signed})
    code = re.search(r"[0-9A-Z]{8}-[0-9A-Z]{26}", settings.text)
    assert code
    agent.kept += [code[0], code[0].split("-")[1]]
    for path in ("/approvals/", "/agents/", "/activity/", f"/approvals/{agent.grant_id}/receipt/"):
        human.page(path)
    end = f"/agents/{agent.agent_id}/revoke/"
    end += shown_in(page := human.page(end))
    [typed] = re.findall(r'data-typed="([^"]+)"', page)
    options = human.post("/verify/options", {"act": end})["publicKey"]
    signed = json.dumps(human.device.assertion(options))
    assert human.http.post(end, data={"typed": typed, "verification": signed}).status_code == 302
    assert agent.ask(agent.question(token, read)).json()["valid"] is False
    human.http.post("/sign-out/")
    human.http.close()


class Kept(Scene):
    """An agent that remembers each proof it made."""

    kept: list[str]

    def proof(
        self, token: str, method: str = "POST", path: str = "/v1/payments", nonce: str | None = None
    ) -> str:
        made = super().proof(token, method, path, nonce)
        self.kept.append(made)
        return made

    def api(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        nonce: str | None = None,
        **headers: str,
    ) -> httpx.Response:
        answer = super().api(method, path, body, nonce=nonce, **headers)
        self.kept.append(answer.request.headers["DPoP"])
        return answer


@pytest.fixture(params=one_in(2, ["json", "text"]))
def talkative(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LiveRegistry]:
    """A registry that logs as much as it can, in each format."""
    env = {"LOG_FORMAT": request.param, "LOG_LEVEL": "DEBUG"}
    registry = LiveRegistry(tmp_path, workers=2, env=env)
    registry.prepare()
    registry.start()
    yield registry
    registry.stop()


def test_AU_24_OG_24_DJ_28_U6_database_log_and_metrics_hold_no_secret(
    talkative: LiveRegistry,
) -> None:
    """Only digests. Tokens and proofs are searched by signature: without it the rest is useless."""
    sqlite_registry = talkative
    kept = run(sqlite_registry)
    metrics = httpx.get(f"{sqlite_registry.url}/metrics", timeout=30).text
    assert "agentauth_decisions_total" in metrics
    kept += [secret.rsplit(".", 1)[1] for secret in kept if secret.count(".") == 2]
    registry = sqlite_registry
    sqlite_registry.stop()
    with closing(sqlite3.connect(registry.directory / "agentauth.sqlite3")) as database:
        stored = "\n".join(database.iterdump())
    log = registry.log.read_text()
    assert "Research Assistant" in stored  # the search finds what is there
    assert "/v1/tokens" in log
    assert "/claim/<str:secret>/decide" in log
    assert len(kept) > 20
    for secret in kept:
        assert secret not in stored, secret
        # Binary columns are dumped in hex.
        assert secret.encode().hex().upper() not in stored.upper(), secret
        assert secret not in log, secret
        assert secret not in metrics, secret
