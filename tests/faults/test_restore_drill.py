"""The drill of docs/restore.md in small: a backup, later events, a restore, continuing (SA-13)."""

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

from tests.actors import drawn_in, scenes
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
from tests.live import ROOT
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[RestoreStage]:
    with restore_stage(tmp_path, RestoreStage) as made:
        yield made


@pytest.mark.long
def test_SA_13_nothing_is_answered_until_an_operator_continues(
    place: RestoreStage,
) -> None:
    """A backup after N events, more events, then the backup in place of the database."""
    story = begin_story(place)
    dump = place.back_up()
    go_on_after_backup(place, story)
    place.restore(dump)
    place.until_held()
    nothing_is_answered(place, story)
    done = one_of_two_operators_continues(place)
    place.until_it_decides()
    nothing_lost_passes(place, story, done)
    goes_on(place, story)
    tells_the_truth(place, done)


def nothing_is_answered(place: RestoreStage, story: Story) -> None:
    """No process answers, not even after a restart, and nothing is numbered."""
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
    assert (
        story.reader.api("POST", "/v1/tokens", {"grant_id": story.reader.grant_id}).status_code
        == 503
    )
    assert story.admin.http.get("/approvals/").status_code == 503
    processes = (*place.servers.values(), *place.jobs)
    for process in processes:
        process.stop()
    for process in processes:
        process.launch()
    place.until_held()
    assert place.sql("SELECT size FROM audit_head") == size


def one_of_two_operators_continues(place: RestoreStage) -> dict[str, Any]:
    """Two operators continue at once, a third has nothing to do. Returns the first one's output."""
    command = ("continue_after_restore", "--yes", "--operator")
    with ThreadPoolExecutor(2) as both:
        done, late = sorted(
            both.map(lambda name: place.command(*command, name), "ab"),
            key=lambda each: each.returncode,
        )
    assert (done.returncode, late.returncode) == (0, 1), done.stderr + late.stderr
    again = place.command(*command, "c")
    assert again.returncode == 1
    assert "The database is not held" in again.stderr
    assert place.sql("SELECT count(*) FROM audit_logbreak") == [(1,)]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def nothing_lost_passes(place: RestoreStage, story: Story, done: dict[str, Any]) -> None:
    """No earlier token is accepted, whatever was revoked, spent or deleted since the backup."""
    assert done["ended_again"] >= 2
    for where in place.servers:
        for scene in (story.payer, story.reader, story.leaver):
            answer = asks(place, scene, story.tokens[scene.grant_id], where)
            assert answer.json()["valid"] is False
    rows = place.sql("SELECT id::text, status, suspension_cause FROM registry_grant")
    grants = {row[0]: row[1:] for row in rows}
    assert grants[story.reader.grant_id][0] == "revoked"
    assert grants[story.payer.grant_id] == ("suspended", "restored")
    people = {
        row[0]: row[1:] for row in place.sql("SELECT id::text, status, name FROM registry_human")
    }
    assert people[story.leaver.human_id] == ("deleted", "Deleted human")
    refused = story.payer.api("POST", "/v1/tokens", {"grant_id": story.payer.grant_id})
    assert refused.json()["error"] == "invalid_grant", refused.text


def goes_on(place: RestoreStage, story: Story) -> None:
    """The user signs again, and a new grant works."""
    story.admin.sign_in()
    page = story.admin.http.get(f"/approvals/{story.payer.grant_id}/").text
    assert "restored from a backup" in page
    signed = story.admin.decide(story.payer.grant_id, story.admin.sign(story.payer.grant_id))
    assert signed.status_code == 200, signed.text
    assert pay(place, story, "order-2").json()["valid"] is True
    [(log,)] = place.sql("SELECT name FROM audit_logbreak")
    base = f"/restores/{log}/"
    assert base in story.admin.http.get("/admin/").text
    options = story.admin.press_on(base, decision="continue").json()["publicKey"]
    kept = story.admin.post(f"{base}decide", {"credential": story.admin.device.assertion(options)})
    assert kept.status_code == 200, kept.text
    assert list(place.store.glob("log-*/receipt-*.jws"))
    [fresh] = scenes(place.registry, [{"capabilities": [READ], "envelope": {}}])
    assert asks(place, fresh, token_of(fresh)).json()["valid"] is True


def tells_the_truth(place: RestoreStage, done: dict[str, Any]) -> None:
    """Each verifier refuses the break unless that very break is accepted, and always reports it."""
    place.put_outside()
    refused = place.command("verify_audit")
    said = json.loads(refused.stdout)
    [name] = said["breaks"]
    assert (refused.returncode, said["ok"]) == (1, True)
    assert name.split(":")[:2] == [done["log"], str(done["size"])]
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
        "agentauth.cli",
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


@pytest.mark.long
def test_SA_13_a_second_restore_with_an_empty_redis_is_held(
    place: RestoreStage,
) -> None:
    story = begin_story(place)
    dump = place.back_up()
    go_on_after_backup(place, story)
    first = sleeps_through_it(place, story, dump)
    place.redis.nodes[0].client().flushall()
    place.restore(dump)
    place.until_held()
    second = place.go_on()["log"]
    place.until_it_decides()
    assert asks(place, story.reader, story.tokens[story.reader.grant_id]).json()["valid"] is False
    assert place.sql("SELECT name, previous, lost FROM audit_logbreak") == [(second, "", [first])]


def sleeps_through_it(place: RestoreStage, story: Story, dump: Path) -> str:
    """A verifier must not use the lost history's token and epoch. Returns the new log's name."""
    token = token_of(story.payer)
    until(lambda: asks(place, story.payer, token, "b").status_code == 200, "it does not answer", 60)
    assert place.b.process
    os.killpg(place.b.process.pid, signal.SIGSTOP)
    place.restore(dump)
    until(lambda: bool(place.sql("SELECT held_at FROM verifier_home")[0][0]), "it is not held", 60)
    log = place.go_on()["log"]
    until(lambda: place.home()[2] is False, "no epoch begins")
    os.killpg(place.b.process.pid, signal.SIGCONT)
    for scene, held in ((story.payer, token), (story.reader, story.tokens[story.reader.grant_id])):
        answer = asks(place, scene, held, "b")
        assert answer.status_code == 503 or answer.json()["valid"] is False
    place.until_it_decides()
    assert asks(place, story.payer, token, "b").json()["valid"] is False
    # Redis holds nothing written under an epoch of the lost history.
    epoch = place.home()[0]
    client = place.redis.nodes[0].client()
    late = [fields for key in client.keys("aa:*:events") for _, fields in client.xrange(key)]
    assert all(int(fields[b"e"]) >= epoch - 1 for fields in late)
    return str(log)


@pytest.mark.long
def test_SA_13_after_a_closing_only_what_was_not_used_is_released(place: RestoreStage) -> None:
    story = begin_story(place)
    place.put_outside()
    dump = place.back_up()
    paid = pay(place, story, story.key)
    assert paid.json().get("valid") is True, paid.text
    running = place.command("close_log", "--yes", "--operator", "alice")
    assert running.returncode == 1
    assert "Other connections" in running.stderr
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
    assert re.search(r"after the backup: [^<]+ \(verifier\.decision\.allowed\)", page), page
    token = re.search(r'name="csrf-token" content="([^"]+)"', page)
    assert token
    form = {
        "csrfmiddlewaretoken": token[1],
        "grant": story.reader.grant_id,
        "drawn": drawn_in(page),
    }
    review = story.admin.http.post(f"{path}review", data=form)
    assert review.status_code == 200
    body = {"grants": story.reader.grant_id, "drawn": drawn_in(review.text)}
    options = story.admin.post(f"{path}statement", body).json()["publicKey"]
    done = story.admin.post(f"{path}decide", {"credential": story.admin.device.assertion(options)})
    assert done.status_code == 200, done.text
    assert asks(place, story.reader, token_of(story.reader)).json()["valid"] is True
    # Tokens from before the restore are refused; new ones work.
    assert asks(place, story.reader, story.tokens[story.reader.grant_id]).json()["valid"] is False
    for scene in (story.payer, story.leaver):
        assert scene.api("POST", "/v1/tokens", {"grant_id": scene.grant_id}).status_code != 201
