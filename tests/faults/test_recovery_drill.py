"""The drill of docs/restore.md with base backup and WAL archive: to the end, where nothing is lost, and to a point in time (SA-13)."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests import ministack, postgres
from tests.actors import Scene
from tests.conftest import CAMPAIGN
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

pytestmark = [pytest.mark.faults, pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]


class RecoveryStage(RestoreStage):
    """With a server that archives its WAL, and another data directory for each recovery, by the commands of docs/restore.md."""

    def up(self) -> None:
        self.beside_server("archive", folder=self.archive)
        self.database.stop()
        self.database.start()
        super().up()

    @property
    def archive(self) -> Path:
        return self.database.directory / "archive"

    @property
    def lost(self) -> Path:
        """The data directory of before the recovery."""
        return self.database.directory / "lost"

    def beside_server(self, name: str, *, folder: Path | None = None, target: str = "") -> None:
        """A block of the page on the database's machine, as the user who runs it; `folder` is made first."""
        if folder:
            folder.mkdir()
            if user := postgres.as_server_user():
                os.chown(folder, user["user"], user["group"])
        self.as_printed(
            name,
            beside_server=True,
            PGDATA=str(self.database.data),
            WAL_ARCHIVE=str(self.archive),
            BASE_BACKUP=str(self.database.directory / "base"),
            LOST=str(self.lost),
            TARGET=target,
        )

    def now(self) -> str:
        """The time by the database's clock: all that was committed is from before it."""
        return str(self.sql("SELECT clock_timestamp()::text")[0][0])

    def archive_all(self) -> None:
        """What was committed by now is in the archive."""
        [(segment,)] = self.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")
        self.sql("SELECT pg_switch_wal()")
        until((self.archive / segment).exists, "it is not archived", 60)

    def recover(self, *, target: str = "", last_wal: bool = False) -> None:
        """The database as of `target`, or all there is; with `last_wal` also of what the lost directory had not archived yet."""
        self.database.stop()
        shutil.rmtree(self.lost, ignore_errors=True)
        self.database.data.rename(self.lost)
        self.beside_server("recover", target=target)
        if last_wal:
            self.beside_server("last wal")
        self.database.start()
        self.beside_server("recovered")

    def status(self, scene: Scene) -> str:
        rows = dict(self.sql("SELECT id::text, status FROM registry_grant"))
        return str(rows[scene.grant_id])


@pytest.fixture(params=["bucket", *(["folder"] if CAMPAIGN else [])])
def store_uri(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A bucket with Object Lock, or the stage's folder."""
    if request.param == "folder":
        yield ""
        return
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-a-test")
    (tmp_path / "s3").mkdir()
    with ministack.server(tmp_path / "s3") as url:
        client = boto3.session.Session().client("s3", endpoint_url=url, region_name="us-east-1")
        client.create_bucket(Bucket="the-log", ObjectLockEnabledForBucket=True)
        yield f"s3://the-log/log?endpoint={url}&region=us-east-1&lock_days=30"


@pytest.fixture
def place(tmp_path: Path, store_uri: str) -> Iterator[RecoveryStage]:
    with restore_stage(tmp_path, RecoveryStage, store_uri=store_uri) as made:
        yield made


@pytest.mark.long
def test_SA_13_recovered_to_the_end_it_goes_on_to_a_point_in_time_not(place: RecoveryStage) -> None:
    """One base backup, of before anything was done, for both: the second recovery goes through the history of the first."""
    place.beside_server("base backup")
    story = begin_story(place)
    loses_nothing(place, story)
    loses_what_came_later(place, story)


def loses_nothing(place: RecoveryStage, story: Story) -> None:
    """The server's data is lost but for the last WAL; its processes go on meanwhile."""
    # Half of it is in the archive, and the rest where the server wrote it last.
    place.archive_all()
    assert pay(place, story, "order-0", amount="1.00").json()["valid"] is True
    place.recover(last_wal=True)
    place.until_it_decides()
    assert place.sql("SELECT held_at FROM verifier_home") == [(None,)]
    assert place.sql("SELECT count(*) FROM audit_logbreak") == [(0,)]
    # What was paid is paid, of 10.00.
    assert pay(place, story, "order-0", amount="1.00").json()["repeated"] is True
    assert pay(place, story, "order-2", amount="9.01").json()["valid"] is False
    place.as_printed("verify")


def loses_what_came_later(place: RecoveryStage, story: Story) -> None:
    """By the page: everything is stopped, the database recovered to a point in time, and an operator continues."""
    target = place.now()
    go_on_after_backup(place, story)
    assert (place.status(story.payer), place.status(story.reader)) == ("approved", "revoked")
    place.archive_all()
    processes = [*place.servers.values(), *place.jobs]
    for process in processes:
        process.stop()
    place.recover(target=target)
    assert (place.status(story.payer), place.status(story.reader)) == ("approved", "approved")
    for process in processes:
        process.launch()
    place.until_held()
    token = story.tokens[story.reader.grant_id]
    for where in place.servers:
        answer = asks(place, story.reader, token, where)
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
    assert "The log continues as" in place.as_printed("continue", OPERATOR="alice")
    place.until_it_decides()
    assert (place.status(story.payer), place.status(story.reader)) == ("suspended", "revoked")
    for scene in (story.payer, story.reader, story.leaver):
        for where in place.servers:
            assert asks(place, scene, story.tokens[scene.grant_id], where).json()["valid"] is False
    assert place.sql("SELECT status FROM registry_human WHERE name = 'Deleted human'") == [("deleted",)]
    # Signed at once, not within a minute.
    place.registry.manage("seal_audit")
    assert "THE LOG BREAKS after" in place.as_printed("verify", code=1)
