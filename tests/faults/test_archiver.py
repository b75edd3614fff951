"""kill -9 of two archivers at named and random points: the archive stays one whole chain."""

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests import ministack
from tests.conftest import CAMPAIGN, fresh_database
from tests.faults.table import Results
from tests.live import ROOT, LiveRegistry

pytestmark = pytest.mark.sweep
# Per archiver. Every other kill is at one of six named points.
KILLS = 100 if CAMPAIGN else 4
BUCKET = "the-log"


class Outside:
    """The external store as its owner sees it."""

    def __init__(self, uri: str, client: Any, folder: Path) -> None:
        self.uri, self._client, self._folder = uri, client, folder

    def folder(self) -> Path:
        """All of it as files. Raises AssertionError if a key was written twice, or deleted."""
        if self._client is None:
            return self._folder
        for page in self._client.get_paginator("list_object_versions").paginate(Bucket=BUCKET):
            assert not page.get("DeleteMarkers")
            for version in page["Versions"]:
                path = self._folder / version["Key"].removeprefix("log/")
                assert not path.exists(), f"{version['Key']} was written twice"
                path.parent.mkdir(parents=True, exist_ok=True)
                found = self._client.get_object(
                    Bucket=BUCKET, Key=version["Key"], VersionId=version["VersionId"]
                )
                assert found["ObjectLockMode"] == "COMPLIANCE"
                path.write_bytes(found["Body"].read())
        return self._folder


@pytest.fixture(params=["s3", *(["folder"] if CAMPAIGN else [])])
def outside(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outside]:
    folder = tmp_path / "outside"
    if request.param == "folder":
        yield Outside(f"file:{folder}", None, folder)
        return
    (tmp_path / "s3").mkdir()
    with ministack.server(tmp_path / "s3") as url:
        client = boto3.session.Session("of-a-test", "of-a-test").client(
            "s3", endpoint_url=url, region_name="us-east-1"
        )
        client.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
        yield Outside(
            f"s3://{BUCKET}/log?endpoint={url}&region=us-east-1&lock_days=30", client, folder
        )


@pytest.fixture
def registry(
    outside: Outside, database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> LiveRegistry:
    """Without servers: the database, the store, and a TMPDIR of its own."""
    (tmp_path / "temporary").mkdir()
    env = {
        "AUDIT_STORE": outside.uri,
        "TMPDIR": str(tmp_path / "temporary"),
        "AWS_ACCESS_KEY_ID": "of-a-test",
        "AWS_SECRET_ACCESS_KEY": "of-a-test",
    }
    if database_url:
        # One store holds one log, and the other fixture's database serves the whole module.
        database_url = fresh_database(request.getfixturevalue("postgres_url"), "faults_archiver")
    registry = LiveRegistry(tmp_path, database_url=database_url, env=env)
    registry.prepare()
    return registry


def begun(registry: LiveRegistry, program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.faults.{program}", *arguments],
        cwd=ROOT, env=registry.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def answer(process: subprocess.Popen[str]) -> Any:
    said, wrong = process.communicate(timeout=3_600)
    assert process.returncode == 0, said + wrong
    return json.loads(said)


@contextlib.contextmanager
def busy(registry: LiveRegistry, told: Path) -> Iterator[None]:
    """One process inserts events all the time, another numbers and signs them."""
    # Slower than the killed archivers can archive, or segments would grow from kill to kill.
    writer = begun(registry, "log_work", "record", str(told), "0.1")
    both = [writer, begun(registry, "archive_work", "sign")]
    try:
        yield
        assert [each.poll() for each in both] == [None, None]
    finally:
        for each in both:
            each.kill()
            each.communicate()


def test_RF_14_AU_31_archivers_killed_anywhere_leave_one_archive(
    registry: LiveRegistry, outside: Outside, tmp_path: Path, results: Results
) -> None:
    with busy(registry, tmp_path / "told"):
        both = [
            begun(registry, "archive_work", "archive", str(KILLS), str(seed)) for seed in (1, 2)
        ]
        said = [answer(each) for each in both]
    assert [each["kills"] for each in said] == [KILLS, KILLS]
    left = list((tmp_path / "temporary").glob("agentauth-archive-*"))
    assert left, "nobody was killed at work"
    # With one more event, the next archiver continues from what is really there.
    answer(begun(registry, "log_work", "month", "0", "1"))
    size = answer(begun(registry, "log_work", "finish"))["size"]
    assert registry.manage("archive_audit")["archived_to"] == size
    assert list((tmp_path / "temporary").glob("agentauth-archive-*")) == []

    files = outside.folder()
    rows = answer(begun(registry, "archive_work", "segments"))
    # Each manifest is one the database recorded, and they form a chain from the first leaf to the
    # last.
    manifests = [path.read_bytes() for path in sorted((files / "segments").iterdir())]
    assert [row[2] for row in rows] == [hashlib.sha256(each).hexdigest() for each in manifests]
    ends = [0, *(row[1] for row in rows)]
    assert [row[0] for row in rows] == ends[:-1]
    assert ends[-1] == size

    # Checked by the server, by someone with the archive alone, and by a program independent of the
    # server.
    inside = registry.manage("verify_audit")
    alone = registry.manage("verify_audit", "--archive", outside.uri)
    (tmp_path / "trusted").write_text(answer(begun(registry, "log_work", "vkeys"))["vkeys"])
    verifier = [sys.executable, str(ROOT / "agentauth/sdk/verify_log.py"), str(files)]
    done = subprocess.run(
        [*verifier, "--trusted-keys", str(tmp_path / "trusted")],
        capture_output=True,
        text=True,
        check=False,
    )
    stranger = json.loads(done.stdout)
    for verdict in (inside, alone, stranger):
        assert (verdict["ok"], verdict["tree_size"]) == (True, size), verdict
        assert verdict["root_hash"] == alone["root_hash"]
    results.kills += 2 * KILLS
    where = "S3" if "s3:" in outside.uri else "a folder"
    database = "PostgreSQL" if registry.env["DATABASE_URL"] else "SQLite"
    results.lines.append(
        f"kill -9 of two archivers at named points and at random moments, on {database} and "
        f"{where}: {2 * KILLS} kills, "
        f"{len(rows)} segments, {size} events"
    )
