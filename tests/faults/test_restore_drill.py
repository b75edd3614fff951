"""The drill of docs/restore.md in small: a backup, what happens after it, a restore, and the way on (SA-13)."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.actors import scenes
from tests.faults.cast import token_of
from tests.faults.clients import READ
from tests.faults.restoring import (
    RestoreStage,
    Story,
    asks,
    begin_story,
    go_on_after_backup,
    pay,
    restore_stage,
)
from tests.faults.stage import until
from tests.live import ROOT

pytestmark = [pytest.mark.faults, pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[RestoreStage]:
    with restore_stage(tmp_path, RestoreStage) as made:
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
    # A restart skips nothing, and no process writes another history.
    for server in (*place.servers.values(), *place.jobs):
        server.stop()
        server.launch()
    place.until_held()
    assert place.sql("SELECT size FROM audit_head") == size
    assert "The log continues as" in place.as_printed("continue", OPERATOR="alice")
    place.until_it_decides()
    place.until_outside()
    assert "THE LOG BREAKS after" in place.as_printed("verify", code=1)


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
    rows = place.sql("SELECT id::text, status, suspension_cause FROM registry_grant")
    grants = {row[0]: row[1:] for row in rows}
    assert grants[story.reader.grant_id][0] == "revoked"
    assert grants[story.payer.grant_id] == ("suspended", "restored")
    people = {row[0]: row[1:] for row in place.sql("SELECT id::text, status, name FROM registry_human")}
    assert people[story.leaver.human_id] == ("deleted", "Deleted human")
    refused = story.payer.api("POST", "/v1/tokens", {"grant_id": story.payer.grant_id})
    assert refused.json()["error"] == "invalid_grant", refused.text
    goes_on(place, story)
    tells_the_truth(place, done)


def goes_on(place: RestoreStage, story: Story) -> None:
    """The person signs again, and a new grant works."""
    story.admin.sign_in()
    page = story.admin.http.get(f"/approvals/{story.payer.grant_id}/").text
    assert "restored from a backup" in page
    signed = story.admin.decide(story.payer.grant_id, story.admin.sign(story.payer.grant_id))
    assert signed.status_code == 200, signed.text
    assert pay(place, story, "order-2").json()["valid"] is True
    [(log,)] = place.sql("SELECT name FROM audit_logbreak")
    base = f"/restores/{log}/"
    assert base in story.admin.http.get("/admin/").text
    options = story.admin.post(f"{base}statement", {"decision": "continue"}).json()["publicKey"]
    kept = story.admin.post(f"{base}decide", {"credential": story.admin.device.assertion(options)})
    assert kept.status_code == 200, kept.text
    assert list(place.store.glob("log-*/receipt.jws"))
    [fresh] = scenes(place.registry, [{"capabilities": [READ], "envelope": {}}])
    assert asks(place, fresh, token_of(fresh)).json()["valid"] is True


def tells_the_truth(place: RestoreStage, done: dict[str, Any]) -> None:
    """Each verifier refuses the break unless exactly it is accepted, and shows it either way."""
    place.until_outside()
    said = json.loads(place.command("verify_audit").stdout)
    [name] = said["breaks"]
    assert (said["ok"], name.split(":")[:2]) == (True, [done["log"], str(done["size"])])
    assert place.command("verify_audit").returncode == 1
    other = name[:-1] + ("0" if name[-1] != "0" else "1")
    assert place.command("verify_audit", "--accept-break", other).returncode == 1
    accepted = place.command("verify_audit", "--accept-break", name)
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    assert json.loads(accepted.stdout)["breaks"] == [name]
    place.command("archive_audit")
    store = ["--archive", f"file:{place.store}"]
    assert place.command("verify_audit", *store).returncode == 1
    archive = place.command("verify_audit", *store, "--accept-break", name)
    assert archive.returncode == 0, archive.stdout + archive.stderr
    keys = httpx.get(f"{place.registry.url}/.well-known/agentauth").json()["audit_vkeys"]
    trusted = place.directory / "trusted"
    trusted.write_text("\n".join(keys) + "\n")
    alone = [
        sys.executable,
        "-m",
        "agentauth.sdk",
        "verify-log",
        str(place.store),
        "--trusted-keys",
        str(trusted),
    ]
    assert subprocess.run(alone, check=False, capture_output=True, cwd=ROOT).returncode == 1
    told = subprocess.run(
        [*alone, "--accept-break", name], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_SA_13_restored_twice_and_onto_an_empty_redis(place: RestoreStage) -> None:
    story = begin_story(place)
    dump = place.back_up()
    go_on_after_backup(place, story)
    names = []
    for _ in range(2):
        place.redis.nodes[0].client().flushall()
        place.restore(dump)
        place.until_held()
        names.append(place.go_on()["log"])
        place.until_it_decides()
        assert asks(place, story.reader, story.tokens[story.reader.grant_id]).json()["valid"] is False
    assert place.sql("SELECT name, previous, lost FROM audit_logbreak") == [(names[1], "", [names[0]])]


def test_SA_13_a_verifier_that_slept_through_it_decides_by_nothing_old(place: RestoreStage) -> None:
    story = begin_story(place)
    dump = place.back_up()
    go_on_after_backup(place, story)
    # It knows the token, and believes in the epoch of the lost history.
    token = token_of(story.payer)
    until(lambda: asks(place, story.payer, token, "b").status_code == 200, "it does not answer", 60)
    assert place.b.process
    os.killpg(place.b.process.pid, signal.SIGSTOP)
    place.restore(dump)
    until(lambda: bool(place.sql("SELECT held_at FROM verifier_home")[0][0]), "it is not held", 60)
    place.go_on()
    until(lambda: place.home()[2] is False, "no epoch begins")
    os.killpg(place.b.process.pid, signal.SIGCONT)
    for scene, held in ((story.payer, token), (story.reader, story.tokens[story.reader.grant_id])):
        answer = asks(place, scene, held, "b")
        assert answer.status_code == 503 or answer.json()["valid"] is False
    place.until_it_decides()
    assert asks(place, story.payer, token, "b").json()["valid"] is False
    # In Redis is nothing that was written under an epoch of the lost history.
    epoch = place.home()[0]
    client = place.redis.nodes[0].client()
    late = [fields for key in client.keys("aa:*:events") for _, fields in client.xrange(key)]
    assert all(int(fields[b"e"]) >= epoch - 1 for fields in late)


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


def test_SA_13_after_a_closing_only_what_was_not_used_is_released(place: RestoreStage) -> None:
    story = begin_story(place)
    place.until_outside()
    dump = place.back_up()
    paid = pay(place, story, story.key)
    assert paid.json().get("valid") is True, paid.text
    running = place.command("close_history", "--yes", "--operator", "alice")
    assert running.returncode == 1
    assert "other connections" in running.stderr
    for server in (*place.servers.values(), *place.jobs):
        server.stop()
    assert "Closed after" in place.as_printed("close", OPERATOR="alice")
    place.restore(dump)
    for server in (*place.servers.values(), *place.jobs):
        server.launch()
    place.until_held()
    path = f"/restores/{place.go_on()['log']}/release/"
    place.until_it_decides()
    story.admin.sign_in()
    page = story.admin.http.get(path).text
    offered = set(re.findall(r'name="grant" value="([^"]+)"', page))
    assert offered == {story.reader.grant_id, story.leaver.grant_id}, page
    assert "the lost log says verifier.decision.allowed" in page
    token = re.search(r'name="csrf-token" content="([^"]+)"', page)
    assert token
    form = {"csrfmiddlewaretoken": token[1], "grant": story.reader.grant_id}
    assert story.admin.http.post(f"{path}review", data=form).status_code == 200
    options = story.admin.post(f"{path}statement", {"grants": story.reader.grant_id}).json()["publicKey"]
    done = story.admin.post(f"{path}decide", {"credential": story.admin.device.assertion(options)})
    assert done.status_code == 200, done.text
    assert asks(place, story.reader, token_of(story.reader)).json()["valid"] is True
    # Not by a token of before the restore, and nobody else's.
    assert asks(place, story.reader, story.tokens[story.reader.grant_id]).json()["valid"] is False
    for scene in (story.payer, story.leaver):
        assert scene.api("POST", "/v1/tokens", {"grant_id": scene.grant_id}).status_code != 201
