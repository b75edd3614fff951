"""No call fails while an operator changes a running system (`changes.py` says what is changed).

`make long` makes a few thousand calls, `make campaign` 100,000. With the number of calls in
CHANGES_CALLS, and in the campaign, the report is written to CHANGES.md.
"""

import os
from pathlib import Path

import pytest

from tests.conftest import CAMPAIGN
from tests.faults.changes import run
from tests.faults.table import Results

pytestmark = [
    pytest.mark.faults,
    pytest.mark.flow,
    pytest.mark.history,
    pytest.mark.long,
    pytest.mark.nginx,
    pytest.mark.pgbouncer,
    pytest.mark.postgres,
    pytest.mark.redis,
]
GIVEN = os.environ.get("CHANGES_CALLS", "100000" if CAMPAIGN else "")
CALLS = int(GIVEN or 4_000)
REPORT = Path(__file__).parent / "CHANGES.md"


def test_RF_3_RF_5_RF_18_no_call_fails_while_operators_change_things(
    tmp_path: Path, results: Results
) -> None:
    report = run(CALLS, tmp_path)
    if GIVEN:
        REPORT.write_text(report.text)
    results.lines.append(report.text.partition("**")[2].partition("**")[0].replace("\n", " "))
    assert report.failed == []
    assert report.calls >= CALLS
