"""A small registry behind httpx.MockTransport: records the calls it gets, and answers as a
test says.
"""

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from agentauth.protocol.agent_manifest import VerifiedManifest
from agentauth.protocol.capability import Capability
from agentauth.protocol.dpop import VerifiedProof, verify_proof
from agentauth.protocol.encoding import timestamp
from agentauth.sdk.client import AgentAuthClient
from agentauth.sdk.own_manifest import read_manifest

URL = "https://registry.example.com"
AUDIENCE = "https://api.sp.example/v1"
AGENT_ID = "01900000-0000-7000-8000-000000000001"
SP_ID = "01900000-0000-7000-8000-000000000002"
GRANT_ID = "01900000-0000-7000-8000-000000000003"

Answer = httpx.Response | Exception
Script = Callable[[httpx.Request], Answer | None]


@dataclass
class FakeRegistry:
    """`script` may answer first; calls for which it returns None get the usual answer.

    Every proof is verified.
    """

    now: int
    script: Script = lambda _request: None
    grants: list[dict[str, Any]] = field(default_factory=list)
    agent_status: str = "active"
    manifest: VerifiedManifest | None = None
    expires_in: int = 900
    requests: list[httpx.Request] = field(default_factory=list)
    proofs: list[VerifiedProof] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self._check_proof(request)
        answer = self.script(request)
        if isinstance(answer, Exception):
            raise answer
        return answer or self._usual(request)

    def client(self, tmp_path: Path, **arguments: Any) -> AgentAuthClient:
        client = AgentAuthClient(URL, key_file=tmp_path / "agent.json", **arguments)
        client._registry.transport = httpx.MockTransport(self)
        return client

    def interleaved(self, client: AgentAuthClient) -> None:
        """From now on, calls at the same time take turns before each answer, as over a network."""
        turns = itertools.cycle((3, 40, 9, 120, 1))

        async def answer(request: httpx.Request) -> httpx.Response:
            for _ in range(next(turns)):
                await asyncio.sleep(0)
            return self(request)

        client._registry.transport = httpx.MockTransport(answer)

    def sent(self, method: str, path: str) -> list[httpx.Request]:
        return [r for r in self.requests if (r.method, r.url.path) == (method, path)]

    def bodies(self, method: str, path: str) -> list[Mapping[str, Any]]:
        return [json.loads(request.content) for request in self.sent(method, path)]

    def _check_proof(self, request: httpx.Request) -> None:
        native = str(request.url).startswith(URL)
        token = None if native else request.headers["Authorization"].removeprefix("DPoP ")
        proof = verify_proof(
            request.headers["DPoP"],
            expected_method=request.method,
            expected_url=str(request.url),
            access_token=token,
            body=request.content if native else None,
            now=self.now,
        )
        assert proof.jti not in {seen.jti for seen in self.proofs}, "a proof was sent twice"
        self.proofs.append(proof)

    def _usual(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if not str(request.url).startswith(URL):
            return httpx.Response(200, json={"ok": True})
        if path in {"/v1/agents", "/v1/agents/me/manifest"}:
            return self._agent(json.loads(request.content)["manifest"], path)
        if path.startswith("/v1/service-providers/"):
            return httpx.Response(
                200,
                json={
                    "id": SP_ID,
                    "slug": "sp",
                    "name": "SP",
                    "audience": AUDIENCE,
                    "allowed": ["read:calendar"],
                },
            )
        if path == "/v1/grants" and request.method == "POST":
            asked = json.loads(request.content)
            terms = {name: asked[name] for name in ("capabilities", "envelope")}
            self.grants.append(grant(status="pending", requested=terms))
            return httpx.Response(201, json=self.grants[-1] | {"interval": 2})
        if path == "/v1/grants":
            return httpx.Response(200, json={"results": self.grants[::-1], "next": None})
        if path.startswith("/v1/grants/"):
            found = [each for each in self.grants if each["grant_id"] == path.rsplit("/", 1)[1]]
            return httpx.Response(200, json=found[0]) if found else error(404, "not_found")
        if path == "/v1/tokens":
            number = len(self.sent("POST", "/v1/tokens"))
            return httpx.Response(
                201,
                json={
                    "access_token": f"token-{number}",
                    "token_type": "DPoP",
                    "expires_in": self.expires_in,
                },
            )
        raise AssertionError(f"unexpected {request.method} {path}")

    def _agent(self, compact: str, path: str) -> httpx.Response:
        """The agent under the manifest it registered first, or the one it declared since."""
        if self.manifest is None or path.endswith("/manifest"):
            self.manifest = read_manifest(compact, registry=URL)
        ends = datetime.fromtimestamp(self.manifest.expires_at, UTC)
        body = {
            "agent_id": AGENT_ID,
            "status": self.agent_status,
            "jkt": "x",
            "expires_at": timestamp(ends),
        }
        claim = {"claim_url": f"{URL}/claim/secret/", "claim_code": "ABCD2345"}
        return httpx.Response(200, json=body | (claim if self.agent_status == "unclaimed" else {}))


CALENDAR = [Capability.read("calendar")]
TERMS = {"capabilities": [CALENDAR[0].to_json()], "envelope": {}}


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def registered(registry: FakeRegistry, tmp_path: Path) -> AgentAuthClient:
    """A client whose agent is registered, with a manifest for the calendar."""
    client = registry.client(tmp_path)
    run(client.register(CALENDAR))
    return client


def grant(status: str = "approved", grant_id: str = GRANT_ID, **members: Any) -> dict[str, Any]:
    body = {
        "grant_id": grant_id,
        "status": status,
        "service_provider": {"id": SP_ID, "slug": "sp", "name": "SP", "audience": AUDIENCE},
        "decided_at": None if status == "pending" else "2026-01-01T00:00:00Z",
        "valid_until": None if status == "pending" else "2099-01-01T00:00:00Z",
        "interval": 1,
        "requested": TERMS,
        "granted": None if status == "pending" else TERMS,
    }
    if status == "pending":
        body["approval_url"] = f"{URL}/approvals/{grant_id}/"
    return body | members


def error(
    status: int, code: str, headers: Mapping[str, str] | None = None, **members: Any
) -> httpx.Response:
    body = {"error": code, "error_description": "A sentence."} | members
    return httpx.Response(status, json=body, headers=dict(headers or {}))
