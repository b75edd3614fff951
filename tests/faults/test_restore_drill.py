"""The drill of docs/restore.md in small: a backup, what happens after it, a restore, and the way on (SA-13)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.faults.restoring import (
    RestoreStage,
    Story,
    asks,
    begin_story,
    go_on_after_backup,
    restore_stage,
)

pytestmark = [pytest.mark.faults, pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[RestoreStage]:
    with restore_stage(tmp_path) as made:
        yield made


def restored(place: RestoreStage) -> Story:
    """A backup at N events, then more, then the backup in place of the database."""
    story = begin_story(place)
    dump = place.back_up()
    go_on_after_backup(place, story)
    place.restore(dump)
    return story


def test_SA_13_nothing_is_answered_until_an_operator_continues(place: RestoreStage) -> None:
    story = restored(place)
    place.until_held()
    size = place.sql("SELECT size FROM audit_head")
    for where in place.servers:
        answer = asks(place, story.reader, story.tokens[story.reader.grant_id], where)
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
        introspected = httpx.post(
            f"{place.servers[where].url}/v1/introspect",
            data={"token": story.tokens[story.reader.grant_id]},
            auth=(story.reader.client_id, story.reader.client_secret),
        )
        assert introspected.status_code == 503
        assert httpx.get(f"{place.servers[where].url}/health/live").status_code == 200
    assert story.reader.api("POST", "/v1/tokens", {"grant_id": story.reader.grant_id}).status_code == 503
    assert story.admin.http.get("/approvals/").status_code == 503
    # A restart skips nothing, and nobody writes another history.
    for server in (*place.servers.values(), *place.jobs):
        server.stop()
        server.launch()
    place.until_held()
    assert place.sql("SELECT size FROM audit_head") == size


def test_SA_13_after_it_nothing_revoked_and_nothing_spent_passes(place: RestoreStage) -> None:
    story = restored(place)
    place.until_held()
    done = place.go_on()
    place.until_it_decides()
    assert done["ended_again"] >= 2
    for where in place.servers:
        for scene in (story.payer, story.reader, story.leaver):
            answer = asks(place, scene, story.tokens[scene.grant_id], where)
            assert answer.json()["valid"] is False
    status = {
        row[0]: row[1:] for row in place.sql("SELECT id::text, status, suspension_cause FROM registry_grant")
    }
    assert status[story.reader.grant_id][0] == "revoked"
    assert status[story.payer.grant_id] == ("suspended", "restored")
    people = {row[0]: row[1:] for row in place.sql("SELECT id::text, status, name FROM registry_human")}
    assert people[story.leaver.human_id] == ("deleted", "Deleted human")
    refused = story.payer.api("POST", "/v1/tokens", {"grant_id": story.payer.grant_id})
    assert refused.json()["error"] == "invalid_grant", refused.text


def test_SA_13_of_two_operators_one_continues_and_again_changes_nothing(place: RestoreStage) -> None:
    restored(place)
    place.until_held()
    with ThreadPoolExecutor(2) as both:
        command = ("continue_after_restore", "--yes", "--operator")
        codes = [done.returncode for done in both.map(lambda name: place.command(*command, name), "ab")]
    assert sorted(codes) == [0, 1]
    again = place.command("continue_after_restore", "--yes", "--operator", "c")
    assert again.returncode == 1
    assert "Nothing is held" in again.stderr
    assert place.sql("SELECT count(*) FROM audit_logbreak") == [(1,)]
