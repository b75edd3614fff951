"""What outsiders write is bounded: few refusals of a kind are events, the rest counted (SA-6)."""

import base64
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import pytest
import time_machine
from django.apps import apps
from django.test import Client

from agentauth.protocol.jose import sign_compact
from agentauth.protocol.key_change import KEY_CHANGE_TYP
from audit import kinds
from audit.log.refusal_counts import RECORDED_PER_MINUTE
from audit.models import Event, RefusalCount
from audit.services import seal_audit
from registry.models import BarredKey
from registry.tests.cast import AgentClient, assert_refused
from tests.endpoints import ROUTES, address
from verifier.services.replay_epochs import read_or_create_row

pytestmark = pytest.mark.django_db

ALLOWED = 1
EACH = ALLOWED + 1
# The log's numbers and hashes, and rows that expire by themselves: sessions and sign-in challenges.
BESIDE = {
    "audit.Event", "audit.Opening", "audit.QueueEntry", "audit.RefusalCount", "registry.BarredKey",
    "sessions.Session",
    "approvals.Challenge",
}  # fmt: skip


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch, now: datetime) -> Iterator[None]:
    """A minute that never ends, with a small allowance."""
    monkeypatch.setattr("audit.log.refusal_counts.RECORDED_PER_MINUTE", ALLOWED)
    with time_machine.travel(now, tick=False):
        yield


def strangers(method: str, path: str) -> Iterator[dict[str, str]]:
    """No credentials, an invented client, an unregistered agent, and one disclosing its private
    key.
    """
    for number in range(EACH):
        yield {}
        yield {
            "Authorization": "Basic "
            + base64.b64encode(f"client-{number}:secret".encode()).decode()
        }
        unknown = AgentClient()
        yield {"DPoP": unknown.proof(method, path)}
        yield {
            "DPoP": sign_compact(
                {}, unknown.signer, typ="dpop+jwt", header={"jwk": unknown.private_jwk()}
            )
        }


def rows() -> dict[str, int]:
    return {model._meta.label: model.objects.count() for model in apps.get_models()}  # type: ignore[attr-defined]


@pytest.mark.long
@pytest.mark.usefixtures("_few", "token_key")
def test_SA_6_a_flood_of_each_route_by_strangers_leaves_a_few_events() -> None:
    # The first look of a process writes this row, flood or not.
    read_or_create_row()
    before, first = rows(), Event.objects.latest("id").id
    client = Client(SERVER_NAME="localhost", SERVER_PORT="8000")
    for path in {address(route, {}) for route in ROUTES} | {"/nothing/here"}:
        for method in ("GET", "POST"):
            for number, headers in enumerate(strangers(method, path)):
                client.cookies.clear()
                remote = f"203.0.{number}.{len(path) + len(headers)}"
                client.generic(
                    method,
                    path,
                    headers=headers | {"Origin": "http://localhost:8000"},
                    REMOTE_ADDR=remote,
                )
    after = rows()
    assert {name for name, count in after.items() if count != before[name]} <= BESIDE
    assert BarredKey.objects.count() <= ALLOWED
    written = Counter(
        (event.kind, event.data.get("route"), event.data.get("error"))
        for event in Event.objects.filter(id__gt=first)
    )
    assert {kind for kind, _, _ in written} == {kinds.REQUEST_REFUSED, kinds.AGENT_KEY_BARRED}
    assert max(written.values()) == ALLOWED


@pytest.mark.usefixtures("_few")
def test_SA_6_private_keys_that_no_agent_has_fill_no_table(now: datetime) -> None:
    for _ in range(EACH):
        client = AgentClient()
        client.register(manifest=client.disclosing("agent-manifest+jwt"))
    assert BarredKey.objects.count() == ALLOWED
    assert Event.objects.filter(kind=kinds.AGENT_KEY_BARRED).count() == ALLOWED
    assert RefusalCount.objects.get(route="private key anonymous").count == EACH


@pytest.mark.usefixtures("_few")
def test_SA_6_a_key_that_is_barred_already_uses_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.log.refusal_counts.RECORDED_PER_MINUTE", 2)
    first, second = AgentClient(), AgentClient()
    for _ in range(3):
        first.register(manifest=first.disclosing("agent-manifest+jwt"))
    second.register(manifest=second.disclosing("agent-manifest+jwt"))
    assert set(BarredKey.objects.values_list("jkt", flat=True)) == {first.jkt, second.jkt}
    assert_refused(second.register(), 401, "invalid_client")


@pytest.mark.usefixtures("_few")
def test_SA_6_strangers_use_up_nothing_of_an_agents_allowance(agent: AgentClient) -> None:
    for _ in range(EACH):
        client = AgentClient()
        client.register(manifest=client.disclosing("agent-manifest+jwt"))
    # The key it is about to rotate to.
    following = AgentClient()
    agent.call("POST", "/v1/agents/me/key", {"new_key": following.disclosing(KEY_CHANGE_TYP)})
    assert BarredKey.objects.filter(jkt=following.jkt).exists()


@pytest.mark.usefixtures("_few")
def test_SA_6_an_agents_own_key_is_barred_in_any_flood(agent: AgentClient) -> None:
    for _ in range(EACH):
        client = AgentClient()
        client.register(manifest=client.disclosing("agent-manifest+jwt"))
    agent.call("POST", "/v1/agents", {"manifest": agent.disclosing("agent-manifest+jwt")})
    assert BarredKey.objects.filter(jkt=agent.jkt).exists()
    assert agent.agent().status == "revoked"


def test_SA_6_ten_thousand_unknown_addresses_are_eleven_events(now: datetime) -> None:
    client = Client(SERVER_NAME="localhost", SERVER_PORT="8000")
    total = 10 * RECORDED_PER_MINUTE
    with time_machine.travel(now.replace(second=0), tick=False):
        for number in range(total):
            client.get(f"/v1/{number}")
    with time_machine.travel(now.replace(second=0), tick=False) as clock:
        clock.shift(60)
        seal_audit(now=datetime.now(now.tzinfo))
    refused = Event.objects.filter(kind=kinds.REQUEST_REFUSED).count()
    [rest] = Event.objects.filter(kind=kinds.REFUSALS_SUPPRESSED)
    assert (refused, rest.data["count"]) == (
        RECORDED_PER_MINUTE,
        total - RECORDED_PER_MINUTE,
    )
