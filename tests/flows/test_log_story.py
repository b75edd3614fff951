"""The life of a log: signed, archived, months dropped, proved by outsiders, and restored.

A set clock makes its months, and the owner drops them: the database and the bucket belong to this
test.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests import ministack
from tests.conftest import fresh_database
from tests.live import ROOT, LiveRegistry

pytestmark = [pytest.mark.flow, pytest.mark.postgres, pytest.mark.node]
MONTHS, EACH = 4, 300


class Story(LiveRegistry):
    """Without servers: the database, the commands, and a bucket with Object Lock."""

    bucket: str
    client: Any

    def work(self, *arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.log_work", *arguments],
            cwd=ROOT, env=self.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def download(self, folder: Path) -> None:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix="log/"
        )
        for key in (entry["Key"] for page in pages for entry in page["Contents"]):
            path = folder / key.removeprefix("log/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read())


@pytest.fixture
def story(postgres_url: str, tmp_path: Path) -> Iterator[Story]:
    credentials = {"AWS_ACCESS_KEY_ID": "of-a-test", "AWS_SECRET_ACCESS_KEY": "of-a-test"}
    (tmp_path / "s3").mkdir()
    with ministack.server(tmp_path / "s3") as url:
        store = f"s3://the-log/log?endpoint={url}&region=us-east-1&lock_days=30"
        story = Story(
            tmp_path,
            database_url=fresh_database(postgres_url, "flow_log_story"),
            env=credentials | {"AUDIT_STORE": store},
        )
        story.bucket, story.client = "the-log", ministack.make_bucket(url, "the-log")
        story.prepare()
        yield story


def strangers(folder: Path, keys: Path, *old: Path) -> list[dict[str, Any]]:
    """The verdicts of the two verifiers that share no code with the server."""
    given = [str(folder), "--trusted-keys", str(keys)]
    given += [part for path in old for part in ("--old-checkpoint", str(path))]
    commands = [
        [sys.executable, str(ROOT / "agentauth/sdk/verify_log.py")],
        ["node", str(ROOT / "tests/interop/verify_log.mjs")],
    ]
    answers = []
    for command in commands:
        done = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
        answers.append(json.loads(done.stdout))
        assert (done.returncode == 0) is answers[-1]["ok"]
    return answers


@pytest.mark.long
def test_AU_31_AU_32_AU_33_archived_dropped_proved_and_brought_home(
    story: Story, tmp_path: Path
) -> None:
    made = [story.work("month", str(-ago), str(EACH))["made"] for ago in range(MONTHS, -1, -1)]
    assert made == [EACH] * (MONTHS + 1)
    signed = story.work("finish")
    (tmp_path / "trusted").write_text(story.work("vkeys")["vkeys"])

    # Archive what is signed.
    archived = story.manage("archive_audit")
    assert (archived["archived_from"], archived["archived_to"]) == (0, signed["size"])
    story.download(tmp_path / "kept")
    [old] = (tmp_path / "kept" / "checkpoints").iterdir()

    # The bucket deletes nothing.
    lines = next((tmp_path / "kept" / "objects").glob("*.lines.gz"))
    where = {"Bucket": story.bucket, "Key": f"log/objects/{lines.name}"}
    version = story.client.list_object_versions(Bucket=story.bucket, Prefix=where["Key"])[
        "Versions"
    ][0]
    lock = story.client.get_object_retention(**where)["Retention"]
    assert lock["Mode"] == "COMPLIANCE"
    shorter = {"Mode": "COMPLIANCE", "RetainUntilDate": version["LastModified"]}
    for act, more in (
        (story.client.put_object, {"Body": b"other", "IfNoneMatch": "*"}),
        (story.client.delete_object, {"VersionId": version["VersionId"]}),
        (story.client.put_object_retention, {"Retention": shorter}),
    ):
        with pytest.raises(ClientError):
            act(**where, **more)

    # Drop the months; the log stays verifiable without them.
    before = story.work("events")["events"]
    dropped = story.manage("drop_audit_partitions", "--keep-months", "2")["dropped"]
    assert [each["events"] for each in dropped] == [EACH, EACH]
    assert story.work("events")["events"] == before - 2 * EACH
    assert story.manage("verify_audit")["ok"]

    # The log goes on, and new events are archived too.
    story.work("month", "0", "50")
    later = story.work("finish")
    assert story.manage("archive_audit")["archived_to"] == later["size"]

    # The archive alone proves everything: to us, and to outsiders with one key and one old
    # checkpoint.
    alone = story.manage("verify_audit", "--archive", story.env["AUDIT_STORE"])
    assert (alone["ok"], alone["tree_size"]) == (True, later["size"])
    story.download(tmp_path / "archive")
    for answer in strangers(tmp_path / "archive", tmp_path / "trusted", old):
        assert (answer["ok"], answer["tree_size"]) == (True, later["size"]), answer
        assert answer["root_hash"] == alone["root_hash"]
    # An archive that lacks one byte is refused.
    cut = next((tmp_path / "archive" / "objects").glob("*.lines.gz"))
    cut.write_bytes(cut.read_bytes()[:-1])
    assert [
        answer["ok"] for answer in strangers(tmp_path / "archive", tmp_path / "trusted", old)
    ] == [False] * 2

    # Restore the dropped months.
    assert story.manage("restore_audit")["restored"] == 2 * EACH
    assert story.work("events")["events"] == before + 50
    assert story.manage("verify_audit")["ok"]
