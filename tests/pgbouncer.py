"""A private PgBouncer in transaction mode before a test PostgreSQL, on loopback, no passwords."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import postgres

START_SECONDS = 120
# Server connections per role and database: fewer than the tests have clients.
POOL_SIZE = 4


def program() -> str | None:
    """Where it is; packages install it for administrators, so perhaps not on the path."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Pooler:
    """One PgBouncer on `port`; `settings` are lines of its configuration."""

    def __init__(self, server_port: int, roles: Sequence[str], *, settings: str = "") -> None:
        found = program()
        assert found, "PgBouncer is not installed"
        self.port, self._program, self._settings = postgres.free_port(), found, settings
        self._directory = Path(tempfile.mkdtemp(prefix="agentauth-pgbouncer-"))
        # It refuses to run as root, as PostgreSQL does.
        self._user = postgres.as_server_user()
        self._log = self._directory / "log"
        self._write("users.txt", "".join(f'"{role}" ""\n' for role in roles))
        self._configure(server_port)
        if self._user:
            os.chown(self._directory, self._user["user"], self._user["group"])

    def start(self) -> None:
        self._log.write_bytes(b"")
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [self._program, self._directory / "pgbouncer.ini"],
                stdout=output,
                stderr=output,
                cwd=self._directory,
                user=self._user.get("user"),
                group=self._user.get("group"),
            )
        _wait(self.port, self._process, self._log)

    def restart(self) -> None:
        """As `systemctl restart pgbouncer`: Debian's unit ends it with SIGINT."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(START_SECONDS)
        self.start()

    def lead_to(self, server_port: int) -> None:
        """Change the server in its configuration, and reload it."""
        self._configure(server_port)
        self._process.send_signal(signal.SIGHUP)

    def remove(self) -> None:
        self._process.kill()
        self._process.wait(START_SECONDS)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _configure(self, server_port: int) -> None:
        self._write(
            "pgbouncer.ini",
            f"[databases]\n* = host=127.0.0.1 port={server_port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\n"
            f"unix_socket_dir =\nauth_type = trust\nauth_file = {self._directory}/users.txt\n"
            f"pool_mode = transaction\ndefault_pool_size = {POOL_SIZE}\n{self._settings}\n",
        )

    def _write(self, name: str, text: str) -> None:
        path = self._directory / name
        path.write_text(text)
        if self._user:
            os.chown(path, self._user["user"], self._user["group"])


@contextlib.contextmanager
def running(server_port: int, roles: Sequence[str], *, settings: str = "") -> Iterator[Pooler]:
    """A running PgBouncer for these roles."""
    made = Pooler(server_port, roles, settings=settings)
    made.start()
    try:
        yield made
    finally:
        made.remove()


@contextlib.contextmanager
def pooler(server_port: int, roles: Sequence[str], *, settings: str = "") -> Iterator[int]:
    """The port of a running PgBouncer for these roles."""
    with running(server_port, roles, settings=settings) as made:
        yield made.port


def _wait(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while "process up" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
