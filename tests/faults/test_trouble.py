"""Full disks, a clock that jumps and a certificate that ends: what happens, and what ends it.

The rows of docs/failure-modes.md that need a file system or a clock of their own.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from random import Random

import psycopg
import pytest

from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.sdk import VerifierClient
from tests import faketime, nginx, postgres, redis_servers
from tests.actors import Scene, scenes
from tests.certificates import self_signed
from tests.faults.cast import token_of
from tests.faults.change_stage import trusting
from tests.faults.clients import READ
from tests.faults.restoring import RestoreStage, Story, asks, begin_story, pay
from tests.faults.stage import Stage
from tests.waiting import until

pytestmark = [
    pytest.mark.faults,
    pytest.mark.flow,
    pytest.mark.long,
    pytest.mark.postgres,
    pytest.mark.redis,
]
# Room for three WAL segments of 16 MB, and for the copies of a small log.
WAL_MB, COPIES_MB = 72, 8


@contextlib.contextmanager
def disk(megabytes: int) -> Iterator[Path]:
    """A small file system; the test is skipped where none may be mounted."""
    folder = Path(tempfile.mkdtemp(prefix="agentauth-small-"))
    mount: list[str | Path] = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={megabytes}m,mode=0777",
        "tmpfs",
        folder,
    ]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        folder.rmdir()
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def fill(folder: Path) -> Path:
    """Write until no byte is free; returns the file."""
    ballast = folder / "ballast"
    subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=64k"], check=False, stderr=-3)
    return ballast


def move_wal(database: postgres.Server, folder: Path) -> None:
    """Put the WAL of a running server on a disk of its own, as `initdb --waldir` does."""
    database.stop()
    wal = folder / "pg_wal"
    shutil.move(database.data / "pg_wal", wal)
    subprocess.run(["chown", "-R", "--reference", database.data, folder], check=True)
    (database.data / "pg_wal").symlink_to(wal)
    database.start()


@contextlib.contextmanager
def running(
    directory: Path, database: postgres.Server, store_uri: str = ""
) -> Iterator[RestoreStage]:
    with redis_servers.server() as redis:
        made = RestoreStage(database, redis, directory, seed=1, store_uri=store_uri)
        with made.while_up():
            yield made


def pays(held: Stage, story: Story, token: str, key: str) -> bool:
    """Whether the verifier said yes; it may say 503, but not no."""
    answer = asks(held, story.payer, token, key=key, amount="0.01")
    assert answer.status_code in {200, 503}, answer.text
    return answer.status_code == 200 and bool(answer.json()["valid"])


def test_RF_10_a_full_wal_disk_ends_postgresql_and_loses_no_payment(tmp_path: Path) -> None:
    """PostgreSQL ends; once there is space it must be started, and has all it acknowledged."""
    settings = "-c min_wal_size=32MB -c max_wal_size=32MB"
    with (
        disk(WAL_MB) as small,
        postgres.server(settings=settings) as database,
    ):
        move_wal(database, small)
        with running(tmp_path, database) as held:
            story, done = begin_story(held), 0
            token = token_of(story.payer)
            ballast = fill(small)
            end = time.monotonic() + 120
            while database.is_running():
                assert time.monotonic() < end, "PostgreSQL goes on without space for its WAL"
                done += pays(held, story, token, f"order-{done}")
                with contextlib.suppress(psycopg.Error):
                    # Other sessions write as well.
                    held.sql("SELECT pg_switch_wal()")
            assert not pays(held, story, token, "while-full")
            ballast.unlink()
            database.start()
            until(lambda: pays(held, story, token, "afterwards"), "it does not recover", 60)
            kind = "verifier.decision.allowed"
            [(count,)] = held.sql(f"SELECT count(*) FROM audit_event WHERE kind = '{kind}'")  # noqa: S608
            assert done + 1 <= count <= done + 2


def test_a_full_archive_keeps_wal_on_the_disk_of_postgresql(tmp_path: Path) -> None:
    """Payments continue; `pg_stat_archiver` tells, and it catches up by itself."""
    with disk(COPIES_MB) as small, postgres.server() as database:
        copy = f"cp %p {small}/%f"
        for name, value in {"archive_mode": "on", "archive_command": copy}.items():
            database.say(f"ALTER SYSTEM SET {name} = '{value}'")
        database.stop()
        database.start()
        # A segment takes 16 MB: more than this disk has.
        database.say("CREATE TABLE made (n int)", "SELECT pg_switch_wal()")
        failed = "SELECT failed_count > 0 FROM pg_stat_archiver"
        until(lambda: database.say(failed) == "t", "nothing fails", 60)
        waiting = len(list((database.data / "pg_wal/archive_status").glob("*.ready")))
        assert waiting > 0
        database.say("INSERT INTO made VALUES (1)")
        subprocess.run(["mount", "-o", "remount,size=200m", small], check=True)
        ready = database.data / "pg_wal/archive_status"
        until(lambda: not list(ready.glob("*.ready")), "it does not catch up", 90)


def test_a_full_disk_of_the_copies_stops_only_signing_the_log(tmp_path: Path) -> None:
    with (
        disk(COPIES_MB) as small,
        postgres.server() as database,
        running(tmp_path, database, f"file:{small}/outside") as held,
    ):
        story = begin_story(held)
        held.put_outside()
        copies = newest(small)
        ballast = fill(small)
        assert pay(held, story, "order-1", amount="1.00").json()["valid"] is True
        failed = held.command("seal_audit")
        assert failed.returncode == 1 or newest(small) == copies, failed.stdout + failed.stderr
        assert held.readiness()["status"] == 200
        assert pay(held, story, "order-2", amount="1.00").json()["valid"] is True
        ballast.unlink()
        held.put_outside()
        assert newest(small) != copies
        assert held.command("verify_audit", "--full").returncode == 0


def newest(folder: Path) -> set[str]:
    return {str(each) for each in (folder / "outside").rglob("*") if each.stat().st_size}


@pytest.mark.faketime
def test_a_clock_that_jumps_stops_a_verifier_until_it_is_right(
    tmp_path: Path,
) -> None:
    """A step of ten seconds in one host's running processes, and back."""
    clock = tmp_path / "clock"
    clock.write_text("+0s")
    with postgres.server() as database, redis_servers.server() as redis:
        held = Stage(database, redis, tmp_path, Random(1))
        held.b.env |= {
            "LD_PRELOAD": faketime.LIBRARY,
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        try:
            held.up()
            held.be_in_an_epoch()
            story = reader_of(held)
            for step in ("+10s", "-10s"):
                until(lambda: says(held, story, "b") == 200, "no yes with the right clock", 60)
                clock.write_text(step)
                until(lambda: says(held, story, "b") == 503, "it decides by a wrong clock", 20)
                assert says(held, story, "a") == 200
                clock.write_text("+0s")
            until(lambda: says(held, story, "b") == 200, "it does not recover", 60)
        finally:
            held.down()


def reader_of(held: Stage) -> tuple[Scene, str]:
    [place] = scenes(held.registry, [{"capabilities": [READ], "envelope": {}}])
    return place, token_of(place)


def says(held: Stage, story: tuple[Scene, str], where: str) -> int:
    place, token = story
    answer = asks(held, place, token, where)
    if answer.status_code == 200:
        assert answer.json()["valid"] is True, answer.text
    return answer.status_code


@pytest.mark.nginx
def test_an_expired_certificate_is_named_until_a_reload_renews_it(
    tmp_path: Path,
) -> None:
    """Clients send nothing and say why."""
    site = "server { listen 443 ssl; location / { return 503; } }"
    with nginx.nginx(site, tmp_path, tls=True) as proxy:
        expired = self_signed(tmp_path, valid=-timedelta(hours=1)).read_text()
        (tmp_path / "next").mkdir()
        following = self_signed(tmp_path / "next").read_text()
        bundle = tmp_path / "trusted.pem"
        bundle.write_text(expired + following)
        proxy.process.send_signal(signal.SIGHUP)
        with trusting(bundle):
            until(lambda: "expired" in why(proxy.url), "the SDK does not say why", 20)
            for name in ("proxy.crt", "proxy.key"):
                shutil.copy(tmp_path / "next" / name, tmp_path / name)
            proxy.process.send_signal(signal.SIGHUP)
            until(lambda: "expired" not in why(proxy.url), "it is not renewed", 20)


def why(url: str) -> str:
    """Why the SDK got no decision."""
    with VerifierClient(url, "id", "secret") as client:
        try:
            client.verify(token="a.b.c", proof="d.e.f", method="GET", url="https://api.example/")
        except TemporarilyUnavailableError as error:
            return str(error)
    raise AssertionError("there is no registry")
