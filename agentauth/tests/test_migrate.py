"""`migrate` gives way to serving processes."""

import os
import subprocess
import sys
from pathlib import Path

from agentauth.postgresql.base import SHORT_SECONDS, DatabaseWrapper

ROOT = Path(__file__).resolve().parents[2]


def test_it_waits_for_a_lock_for_less_time_than_callers_do(tmp_path: Path) -> None:
    script = (
        "import sys; sys.argv = ['manage.py', 'migrate']; from agentauth import settings as s; "
        "print(s.DATABASES['default']['OPTIONS']['options'])"
    )
    env = os.environ | {
        "DATABASE_URL": "postgres://somebody@localhost/there",
        "VAR_DIR": str(tmp_path),
    }
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    def lock_timeout(options: str) -> int:
        return int(options.partition("lock_timeout=")[2].split()[0])

    short = DatabaseWrapper.short_options(SHORT_SECONDS)
    assert lock_timeout(told) < lock_timeout(short["options"])
