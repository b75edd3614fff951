"""A private PostgreSQL for tests: DATABASE_URL if it is set, else the system's binaries on a free port.

`python -m tests.postgres COMMAND …` runs a command with DATABASE_URL pointing at it.
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROLE = "agentauth"


def binaries() -> Path | None:
    """Where initdb and postgres are; the newest version installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_server_user() -> dict[str, int]:
    """PostgreSQL refuses to run as root: as root, use the account its package made."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam("postgres")
    return {"user": account.pw_uid, "group": account.pw_gid}


@contextlib.contextmanager
def cluster(*, durable: bool = False) -> Iterator[str]:
    """A running server; gives its URL (a superuser with a database of its own name). Loopback only.

    Unless `durable`, what is committed need not reach the disk: tests kill processes, not machines.
    """
    if given := os.environ.get("DATABASE_URL", ""):
        yield given
        return
    bin_dir = binaries()
    if bin_dir is None:
        raise RuntimeError("PostgreSQL is not installed")
    user = as_server_user()
    directory = Path(tempfile.mkdtemp(prefix="agentauth-postgres-"))
    if user:
        os.chown(directory, user["user"], user["group"])
    data, port = directory / "data", free_port()
    try:
        subprocess.run(
            [
                bin_dir / "initdb",
                "-D",
                data,
                "-U",
                ROLE,
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
                "--locale=C",
            ],
            check=True,
            capture_output=True,
            cwd=directory,
            **user,  # type: ignore[call-overload]
        )
        options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -p {port} -c max_connections=200 -c fsync={'on' if durable else 'off'}"
        start = [bin_dir / "pg_ctl", "-D", data, "-w", "-l", directory / "log", "-o", options, "start"]
        subprocess.run(start, check=True, capture_output=True, cwd=directory, **user)  # type: ignore[call-overload]
        try:
            url = f"postgres://{ROLE}@127.0.0.1:{port}/{ROLE}"
            create = [str(bin_dir / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", ROLE, ROLE]
            subprocess.run(create, check=True, capture_output=True)
            yield url
        finally:
            stop = [bin_dir / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
            subprocess.run(stop, check=False, capture_output=True, cwd=directory, **user)  # type: ignore[call-overload]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    with cluster() as address:
        sys.exit(
            subprocess.run(sys.argv[1:], env=os.environ | {"DATABASE_URL": address}, check=False).returncode
        )
