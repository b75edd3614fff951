"""An agent's life with the SDK, at a live registry with a movable clock."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from agentauth import AgentAuthClient
from agentauth.protocol.errors import InvalidClientError, ManifestError
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.sdk import (
    Action,
    AmbiguousGrantError,
    GrantPendingError,
    Money,
    NoGrantError,
)
from agentauth.sdk.agent_registry_client import Registry
from tests.flows.clocked import PAY, PAYING, READ, WRITE, Place, clocked_place
from tests.live import ROOT

pytestmark = [pytest.mark.flow, pytest.mark.faketime]

# Rotates the key, and is killed before its nth change to a file or connection.
ROTATE = """
import asyncio, os, signal, sys
from agentauth import AgentAuthClient

url, key_file, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
events = 0

def counted(event, arguments):
    global events
    if event in {"os.rename", "socket.connect"}:
        events += 1
        if events == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(counted)
asyncio.run(AgentAuthClient(url, key_file=key_file).rotate_key())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with clocked_place(tmp_path_factory.mktemp("registry")) as made:
        yield made


@pytest.fixture
def started(place: Place, tmp_path: Path) -> Callable[[], AgentAuthClient]:
    """Each call returns the same agent in a newly started process."""
    return lambda: AgentAuthClient(place.registry.url, key_file=tmp_path / "agent.json")


@pytest.mark.long
@pytest.mark.parametrize(
    "restarted",
    [
        pytest.param(False, id="in one process", marks=pytest.mark.long),
        pytest.param(True, id="restarted each time"),
    ],
)
def test_an_agent_lives_for_three_years(
    place: Place, started: Callable[[], AgentAuthClient], restarted: bool
) -> None:
    client = started()
    for _ in range(12):
        asked = place.granted(client, READ)
        assert place.verified(client) == asked
        place.later(timedelta(days=100))
        with pytest.raises(NoGrantError, match=r"expired.*request_grant") as ended:
            place.verified(client)
        assert ended.value.reason == "expired"
        client = started() if restarted else client
    asyncio.run(client.register())
    kinds = [event["kind"] for event in asyncio.run(client.audit_events())]
    # Every second hundred days less than half a year is left, so the SDK renews without a user.
    assert kinds.count("registry.agent.manifest_renewed") == 6
    assert kinds.count("registry.agent.claimed") == 1


def test_an_agent_that_was_off_for_two_years_goes_on(
    place: Place, started: Callable[[], AgentAuthClient]
) -> None:
    place.granted(started(), READ)
    place.later(timedelta(days=730))
    assert place.registry.manage("expire")["agents"]
    assert asyncio.run(started().register()).status == "active"
    asked = place.granted(started(), READ)
    assert place.verified(started()) == asked


def test_a_claim_link_that_ended_is_replaced(
    place: Place, started: Callable[[], AgentAuthClient]
) -> None:
    client = started()
    first = asyncio.run(client.request_grant(place.slug, [READ]))
    place.later(timedelta(hours=2))
    second = asyncio.run(client.request_grant(place.slug, [READ]))
    assert first.grant_id != second.grant_id
    # The code belongs to the link.
    assert second.claim_code not in {None, first.claim_code}


def test_an_agent_declares_more_and_what_it_had_goes_on(
    place: Place, started: Callable[[], AgentAuthClient]
) -> None:
    client, other = started(), started()
    reading = place.granted(client, READ)
    assert place.verified(client) == place.verified(other) == reading
    with pytest.raises(ManifestError, match="renew_manifest"):
        asyncio.run(client.request_grant(place.slug, [WRITE]))
    asyncio.run(client.renew_manifest([READ, WRITE]))
    # No user is asked again for what a grant covers, whichever process calls.
    assert place.verified(client) == reading
    other.forget_tokens(place.slug)
    assert place.verified(other) == reading
    writing = place.granted(started(), WRITE)
    assert place.verified(started(), Action("write", "files/report")) == writing


def test_what_a_manifest_no_longer_covers_waits_for_a_signature(
    place: Place, started: Callable[[], AgentAuthClient]
) -> None:
    client = started()
    asyncio.run(client.register([READ, WRITE]))
    reading, writing = place.granted(client, READ), place.granted(client, WRITE)
    asyncio.run(client.renew_manifest([WRITE]))
    with pytest.raises(GrantPendingError) as pending:
        place.verified(client)
    assert pending.value.grant_id == reading
    assert place.verified(client, Action("write", "files")) == writing


def test_an_agent_takes_another_key(place: Place, started: Callable[[], AgentAuthClient]) -> None:
    client, other = started(), started()
    asyncio.run(client.register([READ, PAY]))
    reading, paying = place.granted(client, READ), place.granted(client, PAY)
    assert place.verified(client) == place.verified(other) == reading
    former = client.identity().signer
    asyncio.run(client.rotate_key())
    with pytest.raises(InvalidClientError):
        asyncio.run(Registry(place.registry.url).get(former, "/v1/agents/me"))
    # New tokens are issued, in a running process and after a restart.
    other.forget_tokens(place.slug)
    for each in (client, other, started()):
        assert place.verified(each) == reading
    again = asyncio.run(started().request_grant(place.slug, [PAY]))
    assert (again.grant_id, again.status) == (paying, "suspended")
    with pytest.raises(GrantPendingError) as pending:
        place.verified(started(), PAYING)
    assert pending.value.approval_url == again.approval_url
    place.decide("approve", paying)
    assert asyncio.run(started().wait_for_decision(again)).status == "approved"
    assert place.verified(started(), PAYING) == paying


def test_a_change_of_key_that_is_killed_at_any_step_is_finished(
    place: Place, started: Callable[[], AgentAuthClient], tmp_path: Path
) -> None:
    reading = place.granted(started(), READ)
    file, states, last = tmp_path / "agent.json", set(), 0
    registry = Registry(place.registry.url)
    while True:
        last += 1
        command = [sys.executable, "-c", ROTATE, place.registry.url, str(file), str(last)]
        done = subprocess.run(
            command, cwd=ROOT, env=place.registry.env, capture_output=True, check=False
        )
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr.decode()
        states.add(asyncio.run(state(registry, json.loads(file.read_text()))))
        client = started()
        assert place.verified(client) == reading
        assert asyncio.run(client.register()).status == "active"
        # Other users cannot read what a killed process was writing.
        assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())
    # Not begun; stored; accepted by the registry; in place of the old key.
    assert {(False, "present"), (True, "present"), (True, "next")} <= states
    assert place.verified(started()) == reading


async def state(registry: Registry, stored: dict[str, str]) -> tuple[bool, str]:
    """Whether the file has a next key, and by which of its keys the registry knows the agent."""
    for name, member in (("present", "private_key"), ("next", "next_private_key")):
        if pem := stored.get(member):
            try:
                await registry.get(LocalSigner(PrivateKey.from_pem(pem.encode())), "/v1/agents/me")
            except InvalidClientError:
                continue
            return "next_private_key" in stored, name
    raise AssertionError("the registry knows neither key")


def test_a_restarted_agent_asks_for_the_same_only_once(
    place: Place, started: Callable[[], AgentAuthClient]
) -> None:
    limits = {"max_uses": 5}
    first = asyncio.run(started().request_grant(place.slug, [READ, WRITE], limits))
    waiting = asyncio.run(
        started().request_grant(place.slug, [WRITE, READ], limits, "another reason")
    )
    assert (waiting.grant_id, waiting.status) == (first.grant_id, "pending")
    assert (waiting.approval_url, waiting.claim_code) == (first.approval_url, first.claim_code)
    narrowed = [READ.to_json()]
    place.decide("approve", first.grant_id, capabilities=narrowed)
    # The user has said what they give: the SDK does not ask for the rest again.
    again = asyncio.run(started().request_grant(place.slug, [READ, WRITE], limits))
    assert (again.grant_id, again.status, again.approval_url) == (first.grant_id, "approved", None)
    assert again.narrowed
    other = asyncio.run(started().request_grant(place.slug, [READ, WRITE], {"max_uses": 6}))
    assert other.status == "pending"
    place.decide("deny", other.grant_id)
    # Nor does a refusal of other terms withdraw what was approved, or block it for an hour.
    again = asyncio.run(started().request_grant(place.slug, [READ, WRITE], limits))
    assert again.grant_id == first.grant_id
    assert place.verified(started()) == first.grant_id
    place.decide("revoke", first.grant_id)
    with pytest.raises(NoGrantError, match="denied"):
        place.verified(started())


def test_the_grant_that_covers_the_call_is_used(
    place: Place, started: Callable[[], AgentAuthClient]
) -> None:
    client, writing = started(), Action("write", "files/report")
    asyncio.run(client.register([READ, WRITE, PAY]))
    reads = place.granted(client, READ)
    assert place.verified(client) == reads
    # Requested by other processes of the agent, so this process has yet to learn of the grants.
    writes, pays = place.granted(started(), WRITE), place.granted(started(), PAY)
    for each in (client, started()):
        assert place.verified(each, writing) == writes
        assert place.verified(each) == reads
        assert place.verified(each, PAYING) == pays
        with pytest.raises(NoGrantError, match=r"50\.00.*request_grant") as beyond:
            place.verified(each, Action("transact", "payments", Money.of("50.01", "EUR")))
        assert beyond.value.reason == "constraint"
        with pytest.raises(NoGrantError, match=r"delete:files.*Capability\.delete\('files'\)"):
            place.verified(each, Action("delete", "files"))
        with pytest.raises(AmbiguousGrantError, match="action="):
            asyncio.run(each.get_token(place.slug))


def test_a_grant_that_ended_unnoticed_gives_way_to_another(
    place: Place, started: Callable[[], AgentAuthClient]
) -> None:
    client = started()
    asyncio.run(client.register([READ, WRITE]))
    reads, writes = place.granted(client, READ), place.granted(client, WRITE)
    assert place.verified(client, Action("write", "files")) == writes
    place.decide("revoke", reads)
    again = place.granted(started(), READ)
    assert place.verified(client) == again


def test_calls_go_on_while_the_key_is_changed(
    place: Place, started: Callable[[], AgentAuthClient]
) -> None:
    client, other = started(), started()
    reading = place.granted(client, READ)

    async def together() -> None:
        calls = [each.get_grant(reading) for each in (client, other) for _ in range(10)]
        await asyncio.gather(
            client.rotate_key(),
            *calls,
            other.rotate_key(),
            *[other.get_grant(reading) for _ in range(10)],
        )

    for _ in range(2):
        asyncio.run(together())
    assert place.verified(client) == place.verified(other) == place.verified(started()) == reading
