"""Server nonces between real processes: registries that share only a secret, and a provider.

Two servers of one registry run as our own processes, in development mode.
"""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agentauth.protocol.dpop import make_proof
from approvals.tests.cast import browser
from tests.actors import scene
from tests.conftest import CAMPAIGN
from tests.endpoints import ROUTES, address
from tests.flows.test_sdk_service_provider import CHALLENGE, Place
from tests.live import LiveRegistry

pytestmark = pytest.mark.flow

READ = {"type": "read", "resource": "calendar"}
CALLS = 1000 if CAMPAIGN else 200


@pytest.fixture
def second(sqlite_registry: LiveRegistry, tmp_path: Path) -> Iterator[LiveRegistry]:
    """A second server of the same registry, started later: only secret, database and name are
    shared.
    """
    same = {"PUBLIC_URL": sqlite_registry.url, "VAR_DIR": str(sqlite_registry.directory)}
    made = LiveRegistry(tmp_path, workers=1, env=same)
    made.start()
    yield made
    made.stop()


@pytest.mark.long
def test_DN_6_two_servers_taking_turns_ask_once_and_then_never(
    sqlite_registry: LiveRegistry, second: LiveRegistry
) -> None:
    place = scene(sqlite_registry, capabilities=[READ], envelope={})
    statuses: Counter[int] = Counter()
    nonce = "of-nobody"
    with httpx.Client(trust_env=False, timeout=60) as http:
        for number in range(CALLS):
            proof = make_proof(
                place.signer,
                method="GET",
                url=f"{sqlite_registry.url}/v1/agents/me",
                iat=int(time.time()),
                jti=secrets.token_urlsafe(16),
                nonce=nonce,
            )
            server = (sqlite_registry, second)[number % 2]
            answer = http.get(
                f"http://127.0.0.1:{server.port}/v1/agents/me", headers={"DPoP": proof}
            )
            statuses[answer.status_code] += 1
            nonce = answer.headers.get("DPoP-Nonce", nonce)
    # A busy machine answers 503, and requires no nonce.
    assert statuses[401] == 1
    assert statuses[200] + statuses[503] == CALLS - 1
    assert statuses[200] > (0.9 if CAMPAIGN else 0.5) * CALLS


@pytest.mark.production
def test_DN_2_client_obeys_a_real_server_that_requires_a_nonce(
    sqlite_registry: LiveRegistry, tmp_path: Path
) -> None:
    place = Place(sqlite_registry, tmp_path, "--require-nonce")
    with place.serving():
        # The token call already went through a registry nonce: the caller sees nothing of it.
        refused = place.ask("GET", "/calendar/work", place.headers("GET", "/calendar/work"))
        assert (refused.status_code, refused.json()["error"]) == (401, "use_dpop_nonce")
        assert refused.headers["WWW-Authenticate"] == CHALLENGE.format("use_dpop_nonce")
        assert refused.headers["Cache-Control"] == "no-store"
        (nonce,) = refused.headers.get_list("DPoP-Nonce")
        assert nonce not in json.dumps(refused.json())
        headers = asyncio.run(
            place.client.authenticate_headers(place.slug, "GET", "/calendar/work", nonce=nonce)
        )
        assert place.ask("GET", "/calendar/work", headers).status_code == 200
        # The client does all of it by itself; a payment under one key is made once.
        order = {"amount": {"value": "20.00", "currency": "EUR"}, "payee": "ACME"}
        paid = asyncio.run(place.client.call(place.slug, "POST", "/payments", json=order))
        assert paid.status_code in {200, 201}, paid.text
        assert (
            asyncio.run(place.client.call(place.slug, "GET", "/calendar/work")).status_code == 200
        )


@pytest.mark.django_db
def test_DN_20_no_origin_is_let_in_whatever_it_asks_for() -> None:
    """No script of another site may read answers or send proofs: no address sends a CORS header."""
    headers = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "DPoP, Authorization, Content-Type",
        "DPoP": "x",
    }
    client = browser()
    for route in ROUTES:
        for method in ("OPTIONS", "GET", "POST"):
            answer = client.generic(
                method, address(route, {}), "{}", content_type="application/json", headers=headers
            )
            assert not [
                name for name in answer.headers if name.lower().startswith("access-control-")
            ]
