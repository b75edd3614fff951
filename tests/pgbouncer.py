"""A private PgBouncer in transaction mode before a test PostgreSQL, on loopback, no passwords."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import postgres

START_SECONDS = 20
# Server connections per role and database: fewer than the tests have clients.
POOL_SIZE = 4


def program() -> str | None:
    """Where it is; packages install it for administrators, so perhaps not on the path."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def pooler(server_port: int, roles: Sequence[str], *, settings: str = "") -> Iterator[int]:
    """The port of a PgBouncer for these roles; `settings` are lines of its configuration."""
    found, port = program(), postgres.free_port()
    assert found, "PgBouncer is not installed"
    directory = Path(tempfile.mkdtemp(prefix="agentauth-pgbouncer-"))
    (directory / "users.txt").write_text("".join(f'"{role}" ""\n' for role in roles))
    (directory / "pgbouncer.ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={server_port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = trust\nauth_file = {directory}/users.txt\n"
        f"pool_mode = transaction\ndefault_pool_size = {POOL_SIZE}\n{settings}\n"
    )
    # It refuses to run as root, as PostgreSQL does.
    user = postgres.as_server_user()
    if user:
        for each in (directory, *directory.iterdir()):
            os.chown(each, user["user"], user["group"])
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [found, directory / "pgbouncer.ini"],
            stdout=output,
            stderr=output,
            cwd=directory,
            user=user.get("user"),
            group=user.get("group"),
        )
    try:
        _wait(port, process, log)
        yield port
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(directory, ignore_errors=True)


def _wait(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while "process up" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
