"""The drill of docs/restore.md with base backup and WAL archive (SA-13).

Recovery to the end loses nothing; recovery to a point in time must be continued by an operator.
"""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests import ministack
from tests.conftest import CAMPAIGN
from tests.faults.recovering import RecoveryStage
from tests.faults.restoring import (
    Story,
    asks,
    begin_story,
    go_on_after_backup,
    pay,
    restore_stage,
)

pytestmark = [pytest.mark.faults, pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]


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
    """One base backup, made first, serves both: the second replays the first one's history."""
    place.schedule_backups()
    story = begin_story(place)
    loses_nothing(place, story)
    loses_what_came_later(place, story)


def loses_nothing(place: RecoveryStage, story: Story) -> None:
    """The server's data is lost except for the last WAL; its processes keep running."""
    # Half of it is in the archive, the rest in the server's last WAL.
    place.archive_all()
    assert pay(place, story, "order-0", amount="1.00").json()["valid"] is True
    place.recover(last_wal=True)
    place.until_it_decides()
    assert place.sql("SELECT held_at FROM verifier_home") == [(None,)]
    assert place.sql("SELECT count(*) FROM audit_logbreak") == [(0,)]
    # The payment from before is still debited, of 10.00.
    assert pay(place, story, "order-0", amount="1.00").json()["repeated"] is True
    assert pay(place, story, "order-2", amount="9.01").json()["valid"] is False
    place.as_printed("verify")


def loses_what_came_later(place: RecoveryStage, story: Story) -> None:
    """As on the page: stop everything, recover to a point in time, and an operator continues."""
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
    assert place.sql("SELECT status FROM registry_human WHERE name = 'Deleted human'") == [
        ("deleted",)
    ]
    # Sign at once instead of within a minute.
    place.registry.manage("seal_audit")
    assert "THE LOG BREAKS after" in place.as_printed("verify", code=1)
