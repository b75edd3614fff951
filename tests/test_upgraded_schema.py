"""A database of the previous release becomes, by this release's `migrate`, the same as a new one.

So squashed migrations create what those that they replace created, and never run where these did.
"""

import contextlib
import os
import re
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db.migrations.loader import MigrationLoader
from psycopg.rows import dict_row

from registry.release_compatibility import RELEASE
from tests import postgres, previous_release
from tests.live import run_in_django

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.history

Rows = dict[str, list[dict[str, Any]]]

# Each runs in a source tree, and calls only what the previous release has too.
MIGRATE = "call_command('migrate', verbosity=1, no_color=True)"
RECORD = "call_command('record_settings')"
FILL = f"{MIGRATE}; call_command('ensure_keys'); call_command('setup_link'); {RECORD}"
# What a process checks before it serves, and the plan that readiness asks for.
START = """
from agentauth.startup_checks import check_start
check_start()
call_command("migrate", check_unapplied=True)
"""
# PostgreSQL stores the text of a function as it was given, and SQLite that of a trigger. Their
# comments and spaces change nothing.
BODY = re.compile(r"(\$\w*\$)(.*?)\1", re.DOTALL)
COMMENT = re.compile(r"--[^\n]*")
OF_MIGRATE = {"django_migrations", "sqlite_sequence"}
SELECT = 'SELECT * FROM "{}"'
# pg_dump writes a new random word into each dump.
RANDOM = re.compile(r"^\\(un)?restrict .*$", re.MULTILINE)


def plain(sql: str) -> str:
    """SQL without comments, and without spaces that mean nothing."""
    spaced = " ".join(COMMENT.sub("", sql).split())
    return spaced.replace("( ", "(").replace(" )", ")")


class Sqlite:
    """An installation with SQLite. `directory` also holds its keys and development secrets."""

    url = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, root: Path, script: str) -> str:
        """Run Python code in this source tree; returns what it printed."""
        env = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": self.url,
            "VAR_DIR": str(self.directory),
        }
        before = "from django.core.management import call_command\n"
        return run_in_django(before + script, env, root)

    def schema(self) -> list[str]:
        asked = "SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master ORDER BY 1, 2"
        with contextlib.closing(self._connect()) as connection:
            return [" ".join(map(plain, row)) for row in connection.execute(asked)]

    def rows(self) -> Rows:
        """The rows of every table but those that `migrate` itself keeps."""
        with contextlib.closing(self._connect()) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            names = [name for (name,) in tables if name not in OF_MIGRATE]
            connection.row_factory = sqlite3.Row
            return {
                name: [dict(row) for row in connection.execute(SELECT.format(name))]
                for name in names
            }

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.directory / "agentauth.sqlite3")


class Postgresql(Sqlite):
    """An installation with a database of its own on the server at `url`."""

    def __init__(self, directory: Path, server: str) -> None:
        super().__init__(directory)
        self.name = f"upgraded_{uuid.uuid4().hex}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self.name}".encode())
        self.url = f"{server.rpartition('/')[0]}/{self.name}"

    def schema(self) -> list[str]:
        """Also functions, partitions, sequences and privileges."""
        asked = ["pg_dump", "--schema-only", self.url]
        told = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
        bodies = BODY.sub(lambda found: f"$${plain(found[2])}$$", RANDOM.sub("", told))
        return [line for line in bodies.splitlines() if line]

    def rows(self) -> Rows:
        tables = (
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "AND relkind IN ('r', 'p') AND NOT relispartition AND relname <> 'django_migrations'"
        )
        with psycopg.connect(self.url) as connection:
            names = [name for (name,) in connection.execute(tables).fetchall()]
            cursor = connection.cursor(row_factory=dict_row)
            return {name: cursor.execute(SELECT.format(name).encode()).fetchall() for name in names}


def keeps(before: Rows, after: Rows) -> Iterator[str]:
    """Where a row is gone, or one of its columns differs. New tables and columns are none."""
    for table, rows in before.items():
        columns = list(rows[0]) if rows else []
        left = [[row[name] for name in columns] for row in after[table]]
        yield from (table for row in rows if [row[name] for name in columns] not in left)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return previous_release.unpack(tmp_path_factory.mktemp("earlier"))


@pytest.fixture(
    params=[
        pytest.param("sqlite", marks=pytest.mark.long),
        pytest.param("postgresql", marks=pytest.mark.postgres),
    ]
)
def installations(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Sqlite, Sqlite]]:
    """Two installations without tables."""
    directories = tmp_path / "upgraded", tmp_path / "new"
    for each in directories:
        each.mkdir()
    if request.param == "sqlite":
        yield Sqlite(directories[0]), Sqlite(directories[1])
        return
    with postgres.cluster() as server:
        made = Postgresql(directories[0], server), Postgresql(directories[1], server)
        yield made
        with psycopg.connect(server, autocommit=True) as connection:
            for installation in made:
                connection.execute(f"DROP DATABASE {installation.name} WITH (FORCE)".encode())


def test_upgraded_database_equals_a_new_one_and_serves_both_releases(
    earlier: Path, installations: tuple[Sqlite, Sqlite]
) -> None:
    upgraded, new = installations
    upgraded.run(earlier, FILL)
    before = upgraded.rows()
    assert before["kms_key"]
    assert before["audit_event"]
    assert before["verifier_home"]
    # `migrate` raises it.
    before["registry_installation"][0].pop("release")
    told = upgraded.run(ROOT, MIGRATE)
    squashed = {
        f"{app}.{name}"
        for (app, name), migration in MigrationLoader(None).disk_migrations.items()
        if migration.replaces
    }
    assert not squashed & set(re.findall(r"Applying ([\w.]+)\.\.\.", told))
    assert list(keeps(before, upgraded.rows())) == []
    applied = new.run(ROOT, f"{MIGRATE}; {RECORD}")
    assert squashed <= set(re.findall(r"Applying ([\w.]+)\.\.\.", applied))
    assert upgraded.schema() == new.schema()
    for each in installations:
        assert [row["release"] for row in each.rows()["registry_installation"]] == [RELEASE]
        # Readiness compares names of migrations, so those of the previous release are recorded.
        each.run(earlier, START)
        each.run(ROOT, START)
