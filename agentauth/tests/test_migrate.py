"""`migrate` beside processes that serve: it gives way to them, and says so where it cannot come to its end."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.core.management.commands import migrate as djangos
from django.db import OperationalError
from psycopg.errors import LockNotAvailable

from agentauth.management.commands import migrate
from agentauth.postgresql.base import SHORT_SECONDS, DatabaseWrapper

ROOT = Path(__file__).resolve().parents[2]


def in_use() -> OperationalError:
    """As Django tells of a lock that was waited for too long."""
    error = OperationalError("canceling statement due to lock timeout")
    error.__cause__ = LockNotAvailable()
    return error


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[OperationalError | None]:
    """What comes of each try of Django's own command, in this order."""
    coming: list[OperationalError | None] = []

    def handle(*_args: Any, **_options: Any) -> None:
        if error := coming.pop(0):
            raise error

    monkeypatch.setattr(djangos.Command, "handle", handle)
    monkeypatch.setattr(migrate, "PAUSE_SECONDS", 0)
    return coming


def test_a_table_in_use_is_tried_again(tries: list[OperationalError | None]) -> None:
    tries += [in_use(), in_use(), None]
    call_command("migrate", verbosity=0)
    assert tries == []


def test_one_in_use_for_too_long_is_named(tries: list[OperationalError | None]) -> None:
    tries += [in_use() for _ in range(migrate.TRIES)]
    with pytest.raises(CommandError, match="in use for too long"):
        call_command("migrate", verbosity=0)
    assert tries == []


def test_any_other_trouble_is_told_at_once(tries: list[OperationalError | None]) -> None:
    tries += [OperationalError("the connection is lost"), None]
    with pytest.raises(OperationalError, match="lost"):
        call_command("migrate", verbosity=0)
    assert len(tries) == 1


def test_it_waits_for_a_lock_for_less_time_than_callers_do(tmp_path: Path) -> None:
    script = "import sys; sys.argv = ['manage.py', 'migrate']; from agentauth import settings as s; print(s.DATABASES['default']['OPTIONS']['options'])"
    env = os.environ | {"DATABASE_URL": "postgres://somebody@localhost/there", "VAR_DIR": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout

    def lock_timeout(options: str) -> int:
        return int(options.partition("lock_timeout=")[2].split()[0])

    assert lock_timeout(told) < lock_timeout(DatabaseWrapper.limits(SHORT_SECONDS)["options"])
