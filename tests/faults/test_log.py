"""kill -9 of those who number and sign the log, two at once, at moments nobody chose: one line, nothing lost, one story."""

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

# They time nothing, so they run beside the sweeps.
pytestmark = pytest.mark.sweep
# Of each of two.
KILLS = 100 if CAMPAIGN else 6


@pytest.fixture
def registry(database_url: str, tmp_path: Path) -> LiveRegistry:
    """Without its servers: the database, and a folder for the copies outside."""
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
    """Somebody records events all the while, and writes down which."""
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


def test_AU_21_AU_11_sequencers_killed_at_random_leave_one_log(
    registry: LiveRegistry, told: Path, tmp_path: Path, results: Results
) -> None:
    both = [work(registry, "number", str(KILLS), str(seed)) for seed in (1, 2)]
    assert [answer(each)["kills"] for each in both] == [KILLS, KILLS]
    # What comes later waits for those who number next.
    acknowledged = tmp_path / "acknowledged"
    acknowledged.write_text(told.read_text().rpartition("\n")[0] + "\n")
    last = answer(work(registry, "finish"))

    verdict = registry.manage("verify_audit")
    assert verdict["ok"], verdict
    # What `verify_audit` made of the leaves is what was signed last, or some more that came after it.
    assert verdict["tree_size"] >= last["size"]
    newest = max((tmp_path / "outside" / "checkpoints").iterdir()).read_text().split("\n")
    assert newest[1:3] == [str(last["size"]), base64.b64encode(bytes.fromhex(str(last["root"]))).decode()]

    found = answer(work(registry, "leaves", str(acknowledged)))
    assert found["told"] > KILLS
    assert found["missing"] == []
    assert found["numbers"] == list(range(len(found["numbers"])))
    results.kills += 2 * KILLS
    database = "PostgreSQL" if registry.env["DATABASE_URL"] else "SQLite"
    results.lines.append(
        f"kill -9 of two sequencers at random moments, on {database}: {2 * KILLS} kills, {found['told']} events"
    )
