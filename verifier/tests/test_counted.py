"""A decision made in Redis is counted once, by the process that answers."""

from collections.abc import Iterator

import pytest
from django.conf import settings

from tests import endpoint_modes
from verifier.tests.scene import LOOK, PAY, READ, scene

pytestmark = [pytest.mark.redis, pytest.mark.django_db(transaction=True)]

COUNTED: list[tuple[str, str, str]] = []


def observe(decision: str, error: str, reason: str) -> None:
    COUNTED.append((decision, error, reason))


@pytest.fixture(autouse=True)
def _at_home(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(settings, "REDIS_URL", redis_url)
    monkeypatch.setattr(settings, "DECISION_OBSERVER", f"{__name__}.{observe.__name__}")
    COUNTED.clear()
    with endpoint_modes.use_redis_replay_cache(redis_url):
        yield


def test_each_decision_in_redis_is_counted_once() -> None:
    place = scene(READ, PAY, max_requests_per_minute=6, max_burst=1)
    token = place.token()
    body = place.body(LOOK, token=token)
    place.ask(LOOK, token=token, dry_run=True)
    place.post(body, call_key="a" * 24)
    # A repeated answer is not another decision.
    place.post(body, call_key="a" * 24)
    place.ask(LOOK, token=token)
    place.ask({"type": "write", "resource": "calendar"}, token=token)
    place.ask(LOOK, token=token, proof="garbage")
    place.ask(token=token, proof=place.proof(token, nonce="wrong"))
    assert COUNTED == [
        ("rehearsed", "", ""),
        ("allowed", "", ""),
        ("denied", "envelope_exceeded", "rate"),
        ("denied", "insufficient_scope", "no_capability"),
        ("denied", "invalid_dpop_proof", "malformed"),
        ("denied", "use_dpop_nonce", ""),
    ]
    # Decisions in the database are counted with their events.
    place.pay("1.00", token=token)
    assert len(COUNTED) == 6
