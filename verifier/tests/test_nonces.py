"""Nonces at verify: the service provider's policy decides who needs one; answers carry the next."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.utils import timezone

from registry.models import ServiceProvider, SpentProof
from registry.services.nonces import REGISTRY, STEP_SECONDS, nonces_of
from verifier.tests.scene import LOOK, Scene, assert_refused, scene

pytestmark = pytest.mark.django_db
STEP = timedelta(seconds=STEP_SECONDS)


@pytest.fixture
def strict(db: None) -> Scene:
    """A service provider that requires nonces."""
    place = scene()
    ServiceProvider.objects.filter(pk=place.provider.pk).update(require_nonce=True)
    return place


def middle() -> datetime:
    """The middle of the coming step, so that no test runs into the next step."""
    step = int(timezone.now().timestamp()) // STEP_SECONDS + 1
    return datetime.fromtimestamp((step + 0.5) * STEP_SECONDS, UTC)


def test_DN_2_provider_requiring_nonces_gets_the_nonce_to_demand(strict: Scene) -> None:
    token = strict.token()
    answer = assert_refused(strict, strict.body(LOOK, token=token))
    assert answer.keys() == {"valid", "error", "error_description", "nonce"}
    assert answer["error"] == "use_dpop_nonce"
    assert not SpentProof.objects.exists()
    assert strict.denial is not None
    assert (strict.denial.reason, strict.denial.agent_id) == ("use_dpop_nonce", strict.agent.pk)
    assert answer["nonce"] not in str(strict.denial.data)
    for _ in range(2):
        # The same nonce passes again: it limits a proof's age, while the replay cache ensures
        # single use.
        good = strict.ask(LOOK, token=token, proof=strict.proof(token, nonce=answer["nonce"]))
        assert good["valid"]
        assert "nonce" not in good


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    ("shift", "accepted", "fresh"),
    [(-2, False, True), (-1, True, True), (0, True, False), (1, True, False), (2, False, True)],
)
def test_DN_3_previous_current_and_next_nonce_pass_oldest_is_renewed(
    strict: Scene, required: bool, shift: int, accepted: bool, fresh: bool
) -> None:
    ServiceProvider.objects.update(require_nonce=required)
    with time_machine.travel(middle(), tick=False):
        now, server, token = timezone.now(), str(strict.provider.pk), strict.token()
        nonce = nonces_of(server, now + shift * STEP).current
        body = strict.body(LOOK, token=token, proof=strict.proof(token, nonce=nonce))
        answer = strict.ask(**body) if accepted else assert_refused(strict, body)
        assert answer["valid"] is accepted
        assert answer.get("nonce") == (nonces_of(server, now).current if fresh else None)


@pytest.mark.parametrize("required", [True, False])
def test_DP_100_nonce_of_the_registry_or_another_provider_is_foreign(
    strict: Scene, required: bool
) -> None:
    ServiceProvider.objects.update(require_nonce=required)
    other, token = scene(), strict.token()
    with time_machine.travel(middle(), tick=False):
        token = strict.token()
        for server in (REGISTRY, str(other.provider.pk)):
            foreign = nonces_of(server, timezone.now()).current
            body = strict.body(LOOK, token=token, proof=strict.proof(token, nonce=foreign))
            assert assert_refused(strict, body)["error"] == "use_dpop_nonce"


def test_a_dry_run_needs_a_nonce_as_well(strict: Scene) -> None:
    assert assert_refused(strict, strict.body(LOOK, dry_run=True))["error"] == "use_dpop_nonce"


def test_a_repeated_answer_brings_the_nonce_of_its_own_time(strict: Scene) -> None:
    with time_machine.travel(middle(), tick=False) as clock:
        server = str(strict.provider.pk)
        nonce, token = nonces_of(server, timezone.now()).current, strict.token()
        first = strict.ask(
            LOOK, token=token, proof=strict.proof(token, nonce=nonce), idempotency_key="operation"
        )
        assert "nonce" not in first
        clock.shift(STEP)
        proof = strict.proof(token, nonce=nonce)
        again = strict.ask(LOOK, token=token, proof=proof, idempotency_key="operation")
        assert again["repeated"]
        assert again["nonce"] == nonces_of(server, timezone.now()).current != nonce


def test_DN_6_processes_with_different_clocks_ask_once_for_a_nonce(strict: Scene) -> None:
    """Only the secret is shared. Two clocks, half a step apart, take turns in 1,000 calls."""
    server, start = str(strict.provider.pk), middle()
    nonce, asked = "none yet", 0
    for number in range(1000):
        at = start + timedelta(seconds=number)
        clock = at if number % 2 else at + STEP / 2
        nonces = nonces_of(server, clock)
        if nonce not in nonces.accepted:
            asked += 1
            nonce = nonces.current
        nonce = nonces.fresh_for(nonce) or nonce
    assert asked == 1


# Seconds between a proof's `iat` and the true time, on a host whose clock is off by `host`.
TABLE = [
    *[(0, edge, abs(edge) <= 60) for edge in (-3600, -61, -60, -10, 0, 10, 60, 61, 3600)],
    *[(30, edge, -30 <= edge <= 90) for edge in (-31, -30, -10, 10, 90, 91)],
    *[(-30, edge, -90 <= edge <= 30) for edge in (-91, -90, -10, 10, 30, 31)],
]


@pytest.mark.parametrize("with_nonce", [True, False])
def test_DN_13_iat_within_60_s_of_host_clock_with_or_without_nonce(
    place: Scene, with_nonce: bool
) -> None:
    """A nonce proves that the proof is new, but does not relax the check of `iat`."""
    now = middle() + STEP
    with time_machine.travel(now - timedelta(seconds=40), tick=False) as clock:
        token = place.token()
        for host, edge, accepted in TABLE:
            clock.move_to(now + timedelta(seconds=host))
            nonce = (
                nonces_of(str(place.provider.pk), timezone.now()).current if with_nonce else None
            )
            proof = place.proof(token, iat=int(now.timestamp()) + edge, nonce=nonce)
            body = place.body(LOOK, token=token, proof=proof)
            answer = place.ask(**body) if accepted else assert_refused(place, body)
            assert (answer["valid"], answer.get("reason")) == (
                accepted,
                None if accepted else "iat",
            )


def test_DN_8_a_proof_that_was_good_at_verify_is_for_no_other_url(place: Scene) -> None:
    token = place.token()
    proof = place.proof(token)
    assert place.ask(LOOK, token=token, proof=proof)["valid"]
    elsewhere = place.body(
        LOOK, token=token, proof=proof, url=place.provider.audience + "/v1/tokens"
    )
    assert assert_refused(place, elsewhere)["reason"] == "url"
    assert assert_refused(place, place.body(LOOK, token=token, proof=proof))["reason"] == "replayed"
    # The same at the registry's own endpoint for agents.
    response = place.client.post(
        "/v1/tokens",
        json.dumps({"grant_id": str(place.grant.pk)}),
        content_type="application/json",
        headers={"DPoP": proof},
    )
    assert (response.status_code, response.json()["reason"]) == (400, "url")
