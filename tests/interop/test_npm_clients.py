"""Unmodified npm clients: oauth4webapi accepts our token and proof, we accept dpop's proofs."""

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.actors import Scene, may_pay, scene
from tests.asking import answered
from tests.live import LiveRegistry

pytestmark = [pytest.mark.node, pytest.mark.production]

HERE = Path(__file__).resolve().parent
READ = {"type": "read", "resource": "calendar"}
PAY = may_pay("50.00")
ACTION = {"type": "read", "resource": "calendar/work"}


def node(script: str, question: dict[str, Any]) -> Any:
    done = subprocess.run(
        ["node", script],
        cwd=HERE,
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def request_of(place: Scene, **changes: Any) -> dict[str, Any]:
    token = place.token()
    question = {
        "issuer": place.registry.url,
        "audience": place.audience,
        "method": "POST",
        "url": f"{place.audience}/v1/payments",
        "headers": {"Authorization": f"DPoP {token}", "DPoP": place.proof(token)},
    }
    return question | changes


def test_the_lock_file_names_hashes_and_no_registry() -> None:
    lock = (HERE / "package-lock.json").read_text()
    assert "http" not in lock
    packages = [entry for name, entry in json.loads(lock)["packages"].items() if name]
    assert len(packages) == 2
    assert all(entry["integrity"].startswith("sha512-") for entry in packages)


@pytest.mark.usefixtures("npm_packages")
@pytest.mark.parametrize("envelope", [{}, {"max_requests_per_minute": 60, "max_burst": 5}])
def test_oauth4webapi_accepts_our_token_with_our_proof(
    sqlite_registry: LiveRegistry, envelope: dict[str, Any]
) -> None:
    place = scene(sqlite_registry, capabilities=[READ, PAY], envelope=envelope)
    claims = node("validate_access_token.mjs", request_of(place))
    assert claims["client_id"] == place.agent_id
    assert claims["aud"] == place.audience
    assert claims["cnf"] == {"jkt": place.signer.public.thumbprint}
    assert claims["grant_id"] == place.grant_id
    assert claims["scope"] == "read:calendar"
    assert ("verify" in claims) == bool(envelope)


@pytest.mark.usefixtures("npm_packages")
def test_oauth4webapi_refuses_another_url_and_another_audience(
    sqlite_registry: LiveRegistry,
) -> None:
    place = scene(sqlite_registry, capabilities=[READ], envelope={})
    for changes in ({"url": f"{place.audience}/v1/other"}, {"audience": "https://other.example"}):
        with pytest.raises(AssertionError, match=r"OperationProcessingError|mismatch|unexpected"):
            node("validate_access_token.mjs", request_of(place, **changes))


@pytest.mark.usefixtures("npm_packages")
def test_OA_22_oauth4webapi_introspects_and_revokes(sqlite_registry: LiveRegistry) -> None:
    place = scene(sqlite_registry, capabilities=[READ, PAY], envelope={"max_uses": 3})
    token = place.token()
    asked = {
        "issuer": place.registry.url,
        "client_id": place.client_id,
        "client_secret": place.client_secret,
        "token": token,
    }
    before, after = node("introspect_and_revoke.mjs", asked)
    assert (before["active"], before["token_type"], before["verify"]) == (True, "DPoP", "online")
    assert (before["client_id"], before["aud"]) == (place.agent_id, place.audience)
    assert before["cnf"] == {"jkt": place.signer.public.thumbprint}
    assert after == {"active": False}
    answer = answered(lambda: place.ask(place.question(token, ACTION))).json()
    assert (answer["error"], answer["reason"]) == ("invalid_token", "revoked")


@pytest.mark.usefixtures("npm_packages")
def test_OA_22_oauth4webapi_needs_the_right_secret_and_its_own_token(
    sqlite_registry: LiveRegistry,
) -> None:
    place = scene(sqlite_registry, capabilities=[READ], envelope={})
    other = scene(sqlite_registry, capabilities=[READ], envelope={})
    token = place.token()
    stranger = {
        "issuer": place.registry.url,
        "client_id": other.client_id,
        "client_secret": other.client_secret,
        "token": token,
    }
    assert node("introspect_and_revoke.mjs", stranger) == [{"active": False}, {"active": False}]
    with pytest.raises(AssertionError, match=r"invalid_client|WWWAuthenticate"):
        node("introspect_and_revoke.mjs", stranger | {"client_secret": place.client_secret})
    # The other client's revocation changed nothing.
    assert answered(lambda: place.ask(place.question(token, ACTION))).json()["valid"] is True


@pytest.mark.usefixtures("npm_packages")
@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_DN_2_the_npm_package_dpop_does_what_our_nonce_asks_of_it(
    sqlite_registry: LiveRegistry, alg: str
) -> None:
    place = scene(sqlite_registry, capabilities=[READ], envelope={}, alg=alg, require_nonce=True)
    # The token call requires a nonce of the registry, in its header.
    body = {"grant_id": place.grant_id}
    refused = place.api("POST", "/v1/tokens", body)
    assert (refused.status_code, refused.json()["error"]) == (400, "use_dpop_nonce")
    issued = place.api("POST", "/v1/tokens", body, nonce=refused.headers["DPoP-Nonce"])
    token = issued.json()["access_token"]
    asked = {
        "pem": place.signer._key.to_pem().decode(),
        "alg": alg,
        "method": "POST",
        "url": f"{place.audience}/v1/payments",
        "token": token,
        "count": 1,
    }

    def verify() -> httpx.Response:
        (proof,) = node("make_proofs.mjs", asked)
        return place.ask(place.question(token, ACTION, proof=proof))

    answers = []
    for _ in range(2):
        answers.append(answered(verify).json())
        asked["nonce"] = answers[0]["nonce"]
    assert [(answer["valid"], answer.get("error")) for answer in answers] == [
        (False, "use_dpop_nonce"),
        (True, None),
    ]


@pytest.mark.usefixtures("npm_packages")
@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_JK_21_proofs_of_the_npm_package_dpop_are_accepted_once(
    sqlite_registry: LiveRegistry, alg: str
) -> None:
    place = scene(sqlite_registry, capabilities=[READ], envelope={}, alg=alg)
    token = place.token()
    pem = place.signer._key.to_pem().decode()
    asked = {
        "pem": pem,
        "alg": alg,
        "method": "POST",
        "url": f"{place.audience}/v1/payments",
        "token": token,
        "count": 3,
    }
    for proof in node("make_proofs.mjs", asked):
        body = place.question(token, ACTION, proof=proof)
        answers = [answered(partial(place.ask, body)).json() for _ in range(2)]
        assert answers[0]["valid"] is True, answers[0]
        assert (answers[1]["error"], answers[1]["reason"]) == ("invalid_dpop_proof", "replayed")
