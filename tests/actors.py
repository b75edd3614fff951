"""The agent and service provider of end-to-end tests; they import only the protocol package."""

import json
import re
import secrets
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey
from approvals.tests.authenticator import Authenticator
from tests.asking import answered
from tests.live import LiveRegistry


def may_pay(most: str) -> dict[str, Any]:
    """The capability to pay at most this many euros at once."""
    return {
        "type": "transact",
        "resource": "payments",
        "max_amount": {"value": most, "currency": "EUR"},
    }


def payment_of(euros: str) -> dict[str, Any]:
    """The action of paying so many euros."""
    return {
        "type": "transact",
        "resource": "payments",
        "amount": {"value": euros, "currency": "EUR"},
    }


@dataclass
class Scene:
    """An approved grant on a live registry, the agent's key and the provider's credentials."""

    registry: LiveRegistry
    agent_id: str
    human_id: str
    grant_id: str
    audience: str
    client_id: str
    client_secret: str
    signer: LocalSigner

    def api(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        nonce: str | None = None,
        **headers: str,
    ) -> httpx.Response:
        """One call of the agents' API, with a fresh proof."""
        content = json.dumps(body).encode() if body is not None else b""
        url = self.registry.url + path
        proof = make_proof(
            self.signer,
            method=method,
            url=url,
            iat=int(time.time()),
            jti=secrets.token_urlsafe(16),
            body=content or None,
            nonce=nonce,
        )
        return httpx.request(
            method,
            url,
            content=content,
            headers={"DPoP": proof, "Content-Type": "application/json", **headers},
            timeout=30,
        )

    def token(self) -> str:
        answer = answered(lambda: self.api("POST", "/v1/tokens", {"grant_id": self.grant_id}))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["access_token"])

    def proof(
        self, token: str, method: str = "POST", path: str = "/v1/payments", nonce: str | None = None
    ) -> str:
        return make_proof(
            self.signer,
            method=method,
            url=self.audience + path,
            iat=int(time.time()),
            jti=secrets.token_urlsafe(16),
            access_token=token,
            nonce=nonce,
        )

    def question(self, token: str, action: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
        """A verify request, with a fresh proof unless `proof` is given."""
        body = {"token": token, "method": "POST", "url": self.audience + "/v1/payments", **more}
        body.setdefault("proof", self.proof(token))
        return body | ({"action": action} if action else {})

    def ask(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        """The service provider asks the verifier."""
        credentials = (self.client_id, self.client_secret)
        return httpx.post(
            self.registry.url + "/v1/verify",
            json=body,
            auth=credentials,
            headers=headers,
            timeout=60,
        )


def scene(
    registry: LiveRegistry,
    *,
    capabilities: list[dict[str, Any]],
    envelope: dict[str, Any],
    alg: str = "EdDSA",
    owner: str = "",
    require_nonce: bool = False,
) -> Scene:
    """Seed an approved grant on `registry`; with `owner` (an e-mail), a pending one of theirs."""
    wish = {
        "capabilities": capabilities,
        "envelope": envelope,
        "alg": alg,
        "owner": owner,
        "require_nonce": require_nonce,
    }
    return scenes(registry, [wish])[0]


def scenes(registry: LiveRegistry, wishes: list[dict[str, Any]]) -> list[Scene]:
    """One seeded scene per wish."""
    return [_scene(registry, **made) for made in seeded(registry, "scenes", wishes)]


def seeded(registry: LiveRegistry, what: str, told: Any, *, root: Path | None = None) -> Any:
    """Run tests/seed.py on the database of `registry`, from its own code or that in `root`."""
    return registry.act("tests.seed", what, told, root=root)


def _scene(registry: LiveRegistry, *, agent_pem: str, **made: str) -> Scene:
    return Scene(
        registry=registry, signer=LocalSigner(PrivateKey.from_pem(agent_pem.encode())), **made
    )


def drawn_in(page: str) -> str:
    """The token of a page that shows a text to sign; empty if this page shows none."""
    drawn = re.search(r'name="drawn" value="([^"]+)"', page)
    return drawn[1] if drawn else ""


def shown_in(page: str) -> str:
    """The fingerprint of a page that asks for confirmation before ending something."""
    [shown] = re.findall(r'action="([A-Za-z0-9_-]{43})"', page)
    return str(shown)


class LivePerson:
    """A user of a live registry's pages, with a software passkey and a cookie jar."""

    def __init__(self, registry: LiveRegistry, email: str) -> None:
        self.registry, self.email = registry, email
        self.device = Authenticator(origin=registry.url)
        own_pages = {"Origin": registry.url, "Sec-Fetch-Site": "same-origin"}
        self.http = httpx.Client(base_url=registry.url, headers=own_pages, timeout=30)
        # Otherwise the connections are still open when the user is garbage-collected, and a later
        # test fails on the warning.
        weakref.finalize(self, self.http.close)
        link = registry.manage("setup_link", "--email", email)["url"].removeprefix(registry.url)
        self.http.get(link)
        options = self.post(f"{link}options", {"name": "Alice", "email": email}).json()["publicKey"]
        done = self.post(f"{link}finish", {"credential": self.device.registration(options)})
        assert done.status_code == 200, done.text

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.http.post(path, json=body, headers={"X-CSRFToken": self._csrf()})

    def press_on(self, path: str, **fields: str) -> httpx.Response:
        """Open a page that shows a text to sign, and press its button."""
        return self.post(f"{path}statement", {"drawn": drawn_in(self.http.get(path).text)} | fields)

    def claim(self, claim_url: str, code: str) -> None:
        """Claim the agent: open the link, type the code it shows, sign."""
        path = urlsplit(claim_url).path
        options = self.press_on(path, code=code)
        assert options.status_code == 200, options.text
        signed = self.device.assertion(options.json()["publicKey"])
        done = self.post(f"{path}decide", {"credential": signed})
        assert done.status_code == 200, done.text

    def sign(self, grant_id: str) -> dict[str, Any]:
        """All of an approval up to the signature; returns the body that decides."""
        base = f"/approvals/{grant_id}/"
        page = self.http.get(base).text
        everything = dict.fromkeys(re.findall(r'name="(permission\.\d+)"', page), "on")
        drawn = drawn_in(page)
        assert drawn, page
        asked = {"choices": everything, "drawn": drawn}
        assert self.post(f"{base}second-step", asked).status_code == 200
        options = self.post(f"{base}statement", asked | {"decision": "approve"})
        assert options.status_code == 200, options.text
        return {"credential": self.device.assertion(options.json()["publicKey"])}

    def decide(self, grant_id: str, signed: dict[str, Any]) -> httpx.Response:
        return self.post(f"/approvals/{grant_id}/decide", signed)

    def revoke_grant(self, grant_id: str) -> httpx.Response:
        """Read what ends with the grant, then press the button."""
        path = f"/approvals/{grant_id}/revoke/"
        return self.http.post(
            path + shown_in(self.http.get(path).text), headers={"X-CSRFToken": self._csrf()}
        )

    def sign_in(self) -> None:
        """Begin a new session with the passkey."""
        options = self.post("/sign-in/options", {}).json()["publicKey"]
        done = self.post("/sign-in/finish", {"credential": self.device.assertion(options)})
        assert done.status_code == 200, done.text

    def confirm(self, confirmation_id: str) -> httpx.Response:
        """Approve one payment, from the question to the signed answer."""
        path = f"/confirmations/{confirmation_id}/"
        options = self.press_on(path, decision="confirm")
        assert options.status_code == 200, options.text
        return self.post(
            f"{path}decide", {"credential": self.device.assertion(options.json()["publicKey"])}
        )

    def _csrf(self) -> str:
        token = re.search(r'name="csrf-token" content="([^"]+)"', self.http.get("/").text)
        assert token
        return token[1]
