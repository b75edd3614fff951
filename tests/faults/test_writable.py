"""Readiness reports failing writes: a synchronous replica away, a full disk, missing rights."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import postgres
from tests.conftest import fresh_database
from tests.faults.stage import small_disk
from tests.live import ROOT, LiveRegistry, LiveVerifier
from tests.postgres import psql
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.postgres]


def started(directory: Path, url: str) -> LiveRegistry:
    made = LiveRegistry(directory, database_url=url, workers=2)
    made.prepare()
    made.start()
    # A probe may reach any process, and the first one that has compared nothing yet answers 503.
    try:
        until(lambda: all(probed(made).status_code == 200 for _ in range(20)), "one is not ready")
    except BaseException:
        made.stop()
        raise
    return made


def probed(registry: LiveRegistry) -> httpx.Response:
    return httpx.get(f"{registry.url}/health/ready", timeout=30)


def turns(registry: LiveRegistry, state: str) -> None:
    """Wait for this answer of a process that accepts requests whatever it can write. Of another
    check a busy machine may fail one probe.
    """

    def turned() -> bool:
        answer = probed(registry)
        return bool(answer.status_code == 200 and answer.json()["checks"]["writable"] == state)

    until(turned, f"`writable` does not become {state}")


@pytest.mark.long
def test_RF_3_a_lost_standby_is_reported_and_one_connection_waits(tmp_path: Path) -> None:
    with postgres.server() as primary, postgres.replica(primary) as replica:
        registry = started(tmp_path, primary.url)
        try:
            turns(registry, "ok")
            replica.freeze()
            turns(registry, "failing")
            # Each of the two processes has tried again, and no such try waits for the replica.
            again = "writable: canceling statement due to lock timeout"

            def tried_again() -> bool:
                probed(registry)
                return registry.log.read_text().count(again) > 2

            until(tried_again, "nothing is tried again")
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            assert primary.say(waiting) == "1"
            replica.thaw()
            turns(registry, "ok")
        finally:
            registry.stop()


def test_a_full_disk_is_reported_before_its_last_byte(tmp_path: Path) -> None:
    with small_disk() as disk:
        if disk is None:
            pytest.skip("only root may mount a file system")
        with postgres.server(settings="-c max_wal_size=64MB", disk=disk) as database:
            registry = started(tmp_path, database.url)
            try:
                turns(registry, "ok")
                left = os.statvfs(disk)
                filled = disk / "filled"
                filled.write_bytes(bytes(left.f_bavail * left.f_frsize - 512 * 1024))
                turns(registry, "failing")
                filled.unlink()
                turns(registry, "ok")
            finally:
                registry.stop()


@pytest.fixture
def served(postgres_url: str, tmp_path: Path) -> Iterator[tuple[LiveRegistry, str, str]]:
    """A stopped registry with roles of its own; also the owner's URL and the serving role."""
    owner, role = fresh_database(postgres_url, "faults_writable"), f"serving_{os.urandom(3).hex()}"
    assert psql(owner, f"CREATE ROLE {role} LOGIN PASSWORD 'p'").returncode == 0
    registry = LiveRegistry(
        tmp_path,
        database_url=owner.replace("postgres://agentauth@", f"postgres://{role}:p@"),
        workers=1,
        env={"DATABASE_OWNER_URL": owner},
    )
    for command in (["migrate", "-v", "0"], ["grant_serving_role"], ["ensure_keys", "-v", "0"]):
        subprocess.run(
            [sys.executable, "manage.py", *command], cwd=ROOT, env=registry.env, check=True
        )
    yield registry, owner, role
    registry.stop()


@pytest.mark.long
def test_rights_lost_while_running_are_reported_and_named_in_the_log(
    served: tuple[LiveRegistry, str, str],
) -> None:
    registry, owner, role = served
    registry.start()
    turns(registry, "ok")
    assert psql(owner, f"REVOKE INSERT ON audit_event FROM {role}").returncode == 0
    turns(registry, "failing")
    assert f"the role {role} lacks INSERT on audit_event" in registry.log.read_text()
    assert psql(owner, f"GRANT INSERT ON audit_event TO {role}").returncode == 0
    turns(registry, "ok")


@pytest.mark.long
def test_after_a_migration_without_its_grants_no_process_starts(
    served: tuple[LiveRegistry, str, str],
) -> None:
    registry, owner, role = served
    verifier = LiveVerifier(registry, redis_url="", workers=1)
    judging = role.replace("serving", "verifier")
    assert psql(owner, f"CREATE ROLE {judging} LOGIN PASSWORD 'p'").returncode == 0
    registry.manage("grant_verifier_role", judging)
    verifier.act_as(judging)
    jobs = [sys.executable, "manage.py", "jobs"]
    # What a migration adds before the grants are applied.
    for statement in (
        # Each process reads this table at its start.
        f"REVOKE ALL ON registry_installation FROM {role}",
        f"REVOKE UPDATE (told) ON verifier_streamcursor FROM {judging}",
    ):
        assert psql(owner, statement).returncode == 0
    for command, env, missing, remedy in (
        (registry.command, registry.env, "SELECT on registry_installation", "grant_serving_role`"),
        (jobs, registry.env, "SELECT on registry_installation", "grant_serving_role`"),
        (
            verifier.command,
            verifier.env,
            "UPDATE (told) on verifier_streamcursor",
            f"grant_verifier_role {judging}`",
        ),
    ):
        ended = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode != 0
        assert missing in ended.stderr
        assert f" {remedy}" in ended.stderr
    registry.manage("grant_serving_role")
    registry.start()
