"""Renewal that fails. The rest of an agent's life: tests/flows/test_agent_life.py."""

import logging
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from agentauth import AgentAuthClient
from agentauth.protocol.errors import (
    AgentInactiveError,
    InvalidClientError,
    ManifestError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.keys import PrivateKey
from agentauth.sdk.errors import KeyFileError, RegistryError
from agentauth.sdk.tests.fake_registry import (
    AGENT_ID,
    GRANT_ID,
    FakeRegistry,
    error,
    run,
)

DAY = 86_400
DECLARE = "/v1/agents/me/manifest"


def at(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Both sides' clocks, this long after the registration."""
    assert registry.manifest
    now = registry.manifest.issued_at + seconds
    registry.now = int(now)
    monkeypatch.setattr(time, "time", lambda: now)


def refuse(registry: FakeRegistry, answer: httpx.Response) -> None:
    registry.script = lambda request: answer if request.url.path == DECLARE else None


def test_a_manifest_is_renewed_when_half_its_life_is_over(
    registry: FakeRegistry, client: AgentAuthClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(registry, monkeypatch, 182 * DAY)
    run(client.get_grant(GRANT_ID))
    assert registry.sent("POST", DECLARE) == []
    at(registry, monkeypatch, 183 * DAY)
    for _ in range(2):
        run(client.get_grant(GRANT_ID))
    assert len(registry.sent("POST", DECLARE)) == 1


@pytest.mark.parametrize(
    "answer",
    [error(400, "invalid_manifest"), error(503, "temporarily_unavailable")],
    ids=["400", "503"],
)
def test_a_renewal_that_fails_is_a_warning_while_the_manifest_lives(
    registry: FakeRegistry,
    client: AgentAuthClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    slept: list[float],
    answer: httpx.Response,
) -> None:
    at(registry, monkeypatch, 300 * DAY)
    refuse(registry, answer)
    with caplog.at_level(logging.WARNING):
        run(client.get_grant(GRANT_ID))
    assert "could not be renewed" in caplog.text
    tries = len(registry.sent("POST", DECLARE))
    run(client.get_grant(GRANT_ID))
    assert len(registry.sent("POST", DECLARE)) == tries
    registry.script = lambda _request: None
    at(registry, monkeypatch, 300 * DAY + 3600)
    run(client.get_grant(GRANT_ID))
    assert len(registry.sent("POST", DECLARE)) == tries + 1


def test_after_its_end_the_refusal_is_raised(
    registry: FakeRegistry, client: AgentAuthClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(registry, monkeypatch, 366 * DAY)
    refuse(registry, error(400, "invalid_manifest"))
    for _ in range(2):
        with pytest.raises(ManifestError):
            run(client.get_grant(GRANT_ID))
    stored = client.keys.load(client.registry_url)
    assert stored
    assert stored.next_manifest is None


def test_a_renewal_whose_answer_was_lost_is_sent_again_byte_for_byte(
    registry: FakeRegistry,
    client: AgentAuthClient,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    slept: list[float],
) -> None:
    at(registry, monkeypatch, 300 * DAY)
    refuse(registry, error(503, "temporarily_unavailable"))
    run(client.get_grant(GRANT_ID))
    registry.script = lambda _request: None
    run(registry.client(tmp_path).get_grant(GRANT_ID))
    assert len({body["manifest"] for body in registry.bodies("POST", DECLARE)}) == 1
    stored = client.keys.load(client.registry_url)
    assert stored
    assert stored.next_manifest is None
    assert registry.manifest
    assert stored.manifest == registry.manifest.compact


def test_interrupted_renewal_that_was_requested_is_finished_before_due(
    registry: FakeRegistry, client: AgentAuthClient, tmp_path: Path, slept: list[float]
) -> None:
    refuse(registry, error(503, "temporarily_unavailable"))
    with pytest.raises(TemporarilyUnavailableError):
        run(client.renew_manifest())
    registry.script = lambda _request: None
    tries = len(registry.sent("POST", DECLARE))
    run(registry.client(tmp_path).get_grant(GRANT_ID))
    assert len(registry.sent("POST", DECLARE)) == tries + 1


UNREADABLE = {
    "a proxy's page": httpx.Response(200, text="<html>Please wait</html>"),
    "nothing": httpx.Response(204),
    "another object": httpx.Response(200, json={"ok": True}),
    "an agent without id": httpx.Response(200, json={"agent_id": 1, "status": "active"}),
}


@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE)
def test_a_manifest_whose_answer_cannot_be_read_is_sent_again(
    registry: FakeRegistry, client: AgentAuthClient, tmp_path: Path, answer: httpx.Response
) -> None:
    """The registry may have accepted it."""
    refuse(registry, answer)
    before = client.identity().manifest
    with pytest.raises(RegistryError):
        run(client.renew_manifest(description="new"))
    [sent] = registry.bodies("POST", DECLARE)
    stored = client.keys.load(client.registry_url)
    assert stored
    assert (stored.manifest, stored.next_manifest) == (before, sent["manifest"])
    registry.script = lambda _request: None
    run(registry.client(tmp_path).get_grant(GRANT_ID))
    assert registry.bodies("POST", DECLARE) == [sent, sent]
    stored = client.keys.load(client.registry_url)
    assert stored
    assert (stored.manifest, stored.next_manifest) == (sent["manifest"], None)


@pytest.mark.parametrize(
    "answer",
    [error(400, "later_word"), httpx.Response(413, text="<html>"), httpx.Response(307, text="")],
    ids=["an unknown refusal", "a proxy's refusal", "a redirect"],
)
def test_a_manifest_that_was_refused_is_not_sent_again(
    registry: FakeRegistry, client: AgentAuthClient, answer: httpx.Response
) -> None:
    refuse(registry, answer)
    with pytest.raises(RegistryError):
        run(client.renew_manifest())
    assert client.identity().next_manifest is None


def test_a_key_that_the_registry_refuses_is_not_replaced_by_a_new_one(
    registry: FakeRegistry, client: AgentAuthClient
) -> None:
    registry.script = lambda _request: error(401, "invalid_client")
    with pytest.raises(InvalidClientError):
        run(client.get_grant(GRANT_ID))
    path = Path(client.keys.name)
    path.unlink()
    with pytest.raises(KeyFileError, match="vanished"):
        run(client.get_grant(GRANT_ID))
    assert not path.exists()


def test_an_agent_that_never_registered_has_nothing_to_renew_or_rotate(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    for act in (AgentAuthClient.renew_manifest, AgentAuthClient.rotate_key):
        with pytest.raises(ManifestError, match="register"):
            run(act(registry.client(tmp_path)))
    assert registry.requests == []


def test_a_change_of_key_that_another_process_finished_first_is_done(
    registry: FakeRegistry, client: AgentAuthClient
) -> None:
    """Another process finished this change, and a second one, while ours waited for it."""
    latest = PrivateKey.generate()

    def other_process(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.startswith("/v1/agents/me"):
            return None
        if request.method == "POST":
            client.keys.update(
                client.registry_url,
                lambda stored: replace(stored, private_key=latest, next_key=None),
            )
        stored = client.keys.load(client.registry_url)
        assert stored
        if registry.proofs[-1].jkt != stored.signer.kid:
            return error(401, "invalid_client")
        return httpx.Response(200, json={"agent_id": AGENT_ID, "status": "active"})

    registry.script = other_process
    assert run(client.rotate_key()).status == "active"
    assert client.identity().signer.public == latest.public
    assert client.identity().next_key is None


@pytest.mark.parametrize("status", ["unclaimed", "suspended", "expired"])
def test_only_an_active_agent_begins_a_change_of_key(
    registry: FakeRegistry, client: AgentAuthClient, status: str
) -> None:
    registry.script = lambda _request: httpx.Response(
        200, json={"agent_id": AGENT_ID, "status": status}
    )
    with pytest.raises(AgentInactiveError, match=status):
        run(client.rotate_key())
    assert client.identity().next_key is None
