"""kill -9 of two processes that number and sign the log: one sequence, nothing lost, no fork."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CAMPAIGN
from tests.faults.table import Results
from tests.live import ROOT, LiveRegistry

# No timing is asserted, so these run beside the sweeps.
pytestmark = pytest.mark.sweep
# Per process.
KILLS = 100 if CAMPAIGN else 6


@pytest.fixture
def registry(database_url: str, tmp_path: Path) -> LiveRegistry:
    """Without servers: the database, and a folder for the external copies."""
    registry = LiveRegistry(
        tmp_path, database_url=database_url, env={"AUDIT_STORE": f"file:{tmp_path / 'outside'}"}
    )
    registry.prepare()
    return registry


def work(registry: LiveRegistry, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.log_work", *arguments],
        cwd=ROOT, env=registry.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture
def told(registry: LiveRegistry, tmp_path: Path) -> Iterator[Path]:
    """A process inserts events all the time and records their ids."""
    told = tmp_path / "told"
    writer = work(registry, "record", str(told), "0.002")
    yield told
    writer.kill()
    writer.communicate()


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.mark.long
def test_AU_21_AU_11_sequencers_killed_at_random_leave_one_log(
    registry: LiveRegistry, told: Path, tmp_path: Path, results: Results
) -> None:
    both = [work(registry, "number", str(KILLS), str(seed)) for seed in (1, 2)]
    assert [answer(each)["kills"] for each in both] == [KILLS, KILLS]
    # Later events wait for the next numbering.
    acknowledged = tmp_path / "acknowledged"
    acknowledged.write_text(told.read_text().rpartition("\n")[0] + "\n")
    last = answer(work(registry, "finish"))

    verdict = registry.manage("verify_audit")
    assert verdict["ok"], verdict
    # `verify_audit` checked the leaves of the last checkpoint, or of a later one.
    assert verdict["tree_size"] >= last["size"]
    newest = max((tmp_path / "outside" / "checkpoints").iterdir()).read_text().split("\n")
    assert newest[1:3] == [
        str(last["size"]),
        base64.b64encode(bytes.fromhex(str(last["root"]))).decode(),
    ]

    found = answer(work(registry, "leaves", str(acknowledged)))
    assert found["told"] > KILLS
    assert found["missing"] == []
    assert found["numbers"] == list(range(len(found["numbers"])))
    results.kills += 2 * KILLS
    database = "PostgreSQL" if registry.env["DATABASE_URL"] else "SQLite"
    results.lines.append(
        f"kill -9 of two sequencers at random moments, on {database}: {2 * KILLS} kills, "
        f"{found['told']} events"
    )
