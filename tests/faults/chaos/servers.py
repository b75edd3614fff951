"""The servers around the registry that other tests have no restartable form of."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hvac
import requests

from tests import faketime, nginx, pgbouncer, postgres
from tests.postgres import free_port

START_SECONDS = 30


class Process:
    """One server process that can be killed, frozen and started again on the same port."""

    def __init__(
        self, command: list[str], log: Path, *, env: Mapping[str, str] | None = None,
        user: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.command, self.log, self.env, self.user = command, log, dict(env or {}), user or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.after_start: Callable[[], None] = lambda: None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env={**os.environ, **self.env},
                cwd=self.log.parent, start_new_session=True,
                user=self.user.get("user"), group=self.user.get("group"),
            )  # fmt: skip
        self.after_start()

    def send(self, number: signal.Signals) -> None:
        """To every process of the group: a frozen nginx has frozen workers too."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        if self.process:
            self.process.wait(10)
        self.process = None

    stop = kill


def answers(true: Callable[[], object]) -> None:
    """Wait until it raises nothing."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            true()
        except (OSError, requests.RequestException):
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def pooler(directory: Path, server_port: int, port: int) -> Process:
    """PgBouncer with the settings of docs/operations.md, before a PostgreSQL at `server_port`."""
    found = pgbouncer.program()
    assert found
    directory.mkdir()
    (directory / "users.txt").write_text('"serving" "p"\n')
    (directory / "pgbouncer.ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={server_port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = trust\nauth_file = {directory}/users.txt\n"
        "pool_mode = transaction\ndefault_pool_size = 20\n"
        "max_prepared_statements = 200\nignore_startup_parameters = options\n"
    )
    user = postgres.as_server_user()
    if user:
        for each in (directory, *directory.iterdir()):
            os.chown(each, user["user"], user["group"])
    return Process([found, str(directory / "pgbouncer.ini")], directory / "log", user=user)


def proxy(directory: Path, *, port: int, web: int, verifier: int) -> Process:
    """nginx with the site of docs/install.md, without TLS."""
    found = nginx.program()
    assert found
    directory.mkdir()
    site = nginx.documented(web=web, verifier=verifier)
    site = nginx._CERTIFICATE.sub("", site)
    site = nginx._LISTEN.sub(f"listen 127.0.0.1:{port};", site)
    user = "user root;" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(nginx.MAIN.format(user=user, site=site))
    command = [found, "-p", str(directory), "-c", "nginx.conf", "-e", "error.log"]
    return Process(command, directory / "stderr.log")


class KeyService(Process):
    """OpenBao whose keys are on disk: killed, it comes back sealed, and `start` unseals it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.port, self._unseal_key, self.token = free_port(), "", ""
        (directory / "bao.hcl").write_text(
            f'api_addr = "http://127.0.0.1:{self.port}"\n'
            f'cluster_addr = "http://127.0.0.1:{free_port()}"\n'
            f'storage "raft" {{\n path = "{directory}"\n node_id = "one"\n}}\n'
            f'listener "tcp" {{\n address = "127.0.0.1:{self.port}"\n tls_disable = true\n}}\n'
        )
        bao = str(Path(sys.executable).parent / "bao")
        super().__init__([bao, "server", f"-config={directory}/bao.hcl"], directory / "log")
        self.after_start = self._unseal

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _unseal(self) -> None:
        client = hvac.Client(url=self.url, token=self.token)
        answers(client.sys.is_initialized)
        if not self._unseal_key:
            told = client.sys.initialize(1, 1)  # type: ignore[no-untyped-call]
            self._unseal_key, self.token = told["keys"][0], told["root_token"]
        client = hvac.Client(url=self.url, token=self.token)
        client.sys.submit_unseal_key(self._unseal_key)

        def active() -> None:
            requests.get(f"{self.url}/v1/sys/health", timeout=2).raise_for_status()

        answers(active)
        mounted = client.sys.list_mounted_secrets_engines()  # type: ignore[no-untyped-call]
        if "transit/" not in mounted:
            client.sys.enable_secrets_engine("transit")


class Clock:
    """A clock of its own for processes started with `env`; `set` steps it while they run."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set("+0")
        self.env = {
            "LD_PRELOAD": faketime.LIBRARY,
            "FAKETIME_TIMESTAMP_FILE": str(file),
            # How soon the processes see a step (s).
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: str) -> None:
        """Such as `+10` (s) or `-3h`."""
        new = self._file.with_suffix(".new")
        new.write_text(offset + "\n")
        new.chmod(0o644)
        new.rename(self._file)

    @contextlib.contextmanager
    def inherited(self) -> Iterator[None]:
        """Child processes started in the body have this clock."""
        before = dict(os.environ)
        os.environ.update(self.env)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


class RedisClock(Clock):
    """As `Clock`, for a Redis server: redis_clock.c says why. Needs a C compiler."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._library = file.with_suffix(".so")
        self.env = {"LD_PRELOAD": str(self._library), "CLOCK_FILE": str(file)}

    @contextlib.contextmanager
    def inherited(self) -> Iterator[None]:
        """As `Clock.inherited`. Compiles only here, for the runs that step this clock."""
        source = Path(__file__).with_name("redis_clock.c")
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(source)]
        subprocess.run(command, check=True)
        with super().inherited():
            yield


@contextlib.contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """A folder that the user of PostgreSQL may enter."""
    made = Path(tempfile.mkdtemp(prefix=prefix))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
