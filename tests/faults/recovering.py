"""A stage that archives its WAL and makes base backups, by the commands of docs/restore.md."""

import os
import shutil
from pathlib import Path

from tests import postgres
from tests.actors import Scene
from tests.faults.restoring import RestoreStage
from tests.live import ROOT
from tests.waiting import until

# As much of systemd as the page needs: `start` runs the unit's command as its user, with its
# environment, and the place of the test's server.
SYSTEMCTL = """#!/bin/sh
[ "$1" = start ] || exit 0
set -a
. {home}/etc/agentauth/backup.env
unit={home}/etc/systemd/agentauth-backup.service
command=$(sed -n 's|^ExecStart=/opt/agentauth|{home}/opt|p' $unit)
[ "$(id -u)" = 0 ] || exec "$command"
exec setpriv --reuid=postgres --regid=postgres --clear-groups "$command"
"""


class RecoveryStage(RestoreStage):
    """A stage that archives its WAL, with a data directory per recovery, as in docs/restore.md."""

    def up(self) -> None:
        self.beside_server("archive", folder=self.archive)
        self.database.stop()
        self.database.start()
        super().up()

    @property
    def archive(self) -> Path:
        return self.database.directory / "archive"

    @property
    def lost(self) -> Path:
        """The data directory from before the recovery."""
        return self.database.directory / "lost"

    @property
    def backups(self) -> list[Path]:
        """The base backups, oldest first."""
        return sorted((self.database.directory / "backups").glob("base-*Z"))

    def schedule_backups(self, keep: int = 7) -> None:
        """Run the block of the page that schedules base backups and makes the first one."""
        home = self.database.directory / "host"
        if not home.exists():
            for folder in ("opt/deploy", "etc/agentauth", "etc/systemd", "bin"):
                (home / folder).mkdir(parents=True)
            for folder in ("backup", "systemd"):
                shutil.copytree(ROOT / "deploy" / folder, home / "opt/deploy" / folder)
            command = home / "bin/systemctl"
            command.write_text(SYSTEMCTL.format(home=home))
            command.chmod(0o755)
        user = "-o postgres -g postgres "
        self.as_printed(
            "schedule",
            instead={
                "/opt/agentauth": f"{home}/opt",
                "/etc/agentauth": f"{home}/etc/agentauth",
                "/etc/systemd/system": f"{home}/etc/systemd",
                user: user if postgres.as_server_user() else "",
                "systemctl": f"{home}/bin/systemctl",
            },
            BACKUP_DIR=str(self.database.directory / "backups"),
            WAL_ARCHIVE=str(self.archive),
            KEEP=str(keep),
            PGHOST="127.0.0.1",
            PGPORT=str(self.database.port),
            PGUSER=postgres.ROLE,
        )

    def beside_server(self, name: str, *, folder: Path | None = None, target: str = "") -> None:
        """Run a block of the page as the database's user; `folder` is created first."""
        if folder:
            folder.mkdir()
            if user := postgres.as_server_user():
                os.chown(folder, user["user"], user["group"])
        self.as_printed(
            name,
            beside_server=True,
            PGDATA=str(self.database.data),
            WAL_ARCHIVE=str(self.archive),
            BASE_BACKUP=str(self.backups[-1]) if self.backups else "",
            LOST=str(self.lost),
            TARGET=target,
        )

    def now(self) -> str:
        """The database's current time: everything committed so far is earlier."""
        return str(self.sql("SELECT clock_timestamp()::text")[0][0])

    def archive_all(self) -> None:
        """Wait until everything committed so far is in the archive."""
        [(segment,)] = self.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")
        self.sql("SELECT pg_switch_wal()")
        until((self.archive / segment).exists, "it is not archived", 60)

    def recover(self, *, target: str = "", last_wal: bool = False) -> None:
        """Recover the database to `target`, or to the end; `last_wal` adds unarchived WAL."""
        self.database.stop()
        shutil.rmtree(self.lost, ignore_errors=True)
        if self.database.data.exists():
            self.database.data.rename(self.lost)
        self.beside_server("recover", target=target)
        if last_wal:
            self.beside_server("last wal")
        self.database.start()
        self.beside_server("recovered")

    def status(self, scene: Scene) -> str:
        rows = dict(self.sql("SELECT id::text, status FROM registry_grant"))
        return str(rows[scene.grant_id])
