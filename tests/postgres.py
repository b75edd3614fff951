"""A private PostgreSQL for tests: DATABASE_URL if it is set, else the system's binaries on a free
port.

`python -m tests.postgres COMMAND …` runs a command with DATABASE_URL pointing at it. Fault tests
need a private one.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROLE = "agentauth"
# After kill -9 the first starts may fail: the lock file still exists, and backends are still
# exiting.
START_SECONDS = 60


def binaries() -> Path | None:
    """Where initdb and postgres are; the newest version installed."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_server_user() -> dict[str, int]:
    """PostgreSQL refuses to run as root: then use the account its package created."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam("postgres")
    return {"user": account.pw_uid, "group": account.pw_gid}


def url_of(*ports: int) -> str:
    """The URL of one server, or of a primary and its replicas: it finds the writable one."""
    places = ",".join(f"127.0.0.1:{port}" for port in ports)
    which = "?target_session_attrs=read-write" if len(ports) > 1 else ""
    return f"postgres://{ROLE}@{places}/{ROLE}{which}"


def psql(url: str, statement: str) -> subprocess.CompletedProcess[str]:
    """Run one statement; returns psql's result, refused or not."""
    command = ["psql", url, "-v", "ON_ERROR_STOP=1", "-q", "-c", statement]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class Server:
    """One server in its own directory; `url` names a superuser with a database of the same name.

    Loopback only. Unless `durable`, commits need not reach the disk: tests kill processes, not
    machines.
    """

    def __init__(self, directory: Path, *, durable: bool = False, settings: str = "") -> None:
        found = binaries()
        if found is None:
            raise RuntimeError("PostgreSQL is not installed")
        self.directory, self._bin, self._user = directory, found, as_server_user()
        self.data, self.port = directory / "data", free_port()
        fsync = "on" if durable else "off"
        self._options = (
            f"-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -p {self.port}"
            f" -c max_connections=200 -c fsync={fsync} -c full_page_writes={fsync} {settings}"
        )

    @property
    def url(self) -> str:
        return url_of(self.port)

    def make(self) -> None:
        """Initialise an empty server, and start it once."""
        if self._user:
            os.chown(self.directory, self._user["user"], self._user["group"])
        initdb = [
            "-D",
            self.data,
            "-U",
            ROLE,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "--locale=C",
        ]
        self._run("initdb", *initdb)
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", ROLE, ROLE)

    def follow(self, primary: "Server") -> None:
        """Become its synchronous replica: copy the primary, whose commits then wait for this."""
        shutil.rmtree(self.data, ignore_errors=True)
        if self._user:
            os.chown(self.directory, self._user["user"], self._user["group"])
        from_there = [
            "-h",
            "127.0.0.1",
            "-p",
            primary.port,
            "-U",
            ROLE,
            "-X",
            "stream",
            "-c",
            "fast",
            "-R",
        ]
        self._run("pg_basebackup", "-D", self.data, "--no-sync", *from_there)
        self.start()
        # Only after the copy, or this server would wait for a replica itself once promoted.
        primary.say("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        until = time.monotonic() + START_SECONDS
        while primary.say("SELECT sync_state FROM pg_stat_replication") != "sync":
            if time.monotonic() > until:
                raise RuntimeError("the replica does not follow")
            time.sleep(0.1)

    def promote(self) -> None:
        """Become the primary. The former primary must have stopped."""
        self._run("pg_ctl", "-D", self.data, "-w", "promote")

    def say(self, *statements: str) -> str:
        """Run each statement as the superuser; returns the output of the last."""
        given = [part for statement in statements for part in ("-c", statement)]
        asked = ["psql", self.url, "-Atq", *given]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()

    def start(self) -> None:
        """Start, again and again until it stays up."""
        log = ["-l", self.directory / "log", "-o", self._options]
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                return self._run("pg_ctl", "-D", self.data, "-w", *log, "start")
            except subprocess.CalledProcessError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self._run("pg_ctl", "-D", self.data, "-m", "immediate", "stop")

    def is_running(self) -> bool:
        """Whether it accepts connections, or will once it has recovered."""
        status = [str(self._bin / "pg_ctl"), "-D", str(self.data), "status"]
        found = subprocess.run(
            status, check=False, capture_output=True, cwd=self.directory, **self._user
        )  # type: ignore[call-overload]
        return bool(found.returncode == 0)

    def freeze(self) -> None:
        """Stop all its processes: the kernel still accepts connections, but nothing answers."""
        self._signal(signal.SIGSTOP)

    def freeze_the_first(self) -> None:
        """Stop its main process alone: open connections go on, new ones are not served."""
        os.kill(self._postmaster(), signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9 of the postmaster; its backends notice and exit."""
        os.kill(self._postmaster(), signal.SIGKILL)

    def _postmaster(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def _signal(self, number: signal.Signals) -> None:
        first = self._postmaster()
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for pid in [first, *map(int, children)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._bin / program), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd=self.directory, **self._user)  # type: ignore[call-overload]


@contextlib.contextmanager
def server(
    *, durable: bool = False, settings: str = "", disk: Path | None = None
) -> Iterator[Server]:
    """A running private server, with `settings` as `-c name=value …`, in a directory on `disk`."""
    directory = Path(tempfile.mkdtemp(prefix="agentauth-postgres-", dir=disk))
    if disk is not None:
        disk.chmod(0o755)
    made = Server(directory, durable=durable, settings=settings)
    try:
        made.make()
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def replica(primary: Server, *, settings: str = "") -> Iterator[Server]:
    """A synchronous replica of a running server; the settings must equal the primary's."""
    directory = Path(tempfile.mkdtemp(prefix="agentauth-replica-"))
    made = Server(directory, settings=settings)
    try:
        made.follow(primary)
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def cluster(*, durable: bool = False) -> Iterator[str]:
    """The URL of a running server: DATABASE_URL if it is set, else a private one."""
    if given := os.environ.get("DATABASE_URL", ""):
        yield given
        return
    with server(durable=durable) as made:
        yield made.url


if __name__ == "__main__":
    with cluster() as address:
        sys.exit(
            subprocess.run(
                sys.argv[1:], env=os.environ | {"DATABASE_URL": address}, check=False
            ).returncode
        )
