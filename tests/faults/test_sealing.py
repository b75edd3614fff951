"""kill -9 of `seal_rows` before each statement: batch and event are atomic, a rerun resumes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import fresh_database
from tests.faults.table import Results
from tests.live import ROOT, LiveRegistry

pytestmark = pytest.mark.sweep


@pytest.mark.long
@pytest.mark.parametrize(
    "database", ["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.postgres)]
)
def test_killed_seal_rows_goes_on_where_it_stood(
    request: pytest.FixtureRequest, tmp_path: Path, results: Results, database: str
) -> None:
    url = ""
    if database == "PostgreSQL":
        url = fresh_database(request.getfixturevalue("postgres_url"), "faults_sealing")
    registry = LiveRegistry(tmp_path, database_url=url)
    registry.prepare()
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.sealing_work"],
        cwd=ROOT, env=registry.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {each["sealed"] for each in told["seen"]} == {0, 500, 501}
    for each in told["seen"]:
        assert each["told"] == each["adopted"] == each["sealed"]
        assert each["pending"] or each["sealed"] == 501
    assert not told["seen"][-1]["pending"]
    assert told["unsealed"] == 0
    assert registry.manage("verify_audit")["contradicted_rows"] == {}
    kills = len(told["seen"]) - 1
    results.kills += kills
    results.lines.append(
        f"kill -9 before each statement of seal_rows, on {database}: {kills} kills"
    )
