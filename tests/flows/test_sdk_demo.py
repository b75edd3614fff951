"""`make demo` from outside: its output, waits and end; the user acts on each link at once.

This runs in development mode, as `make run` starts it: on SQLite, with jobs beside the server; and
once per kind of key storage, in a registry set up for it. tests/production/test_demo.py runs it on
the installed system.
"""

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from examples.demo.__main__ import USUAL_PORT, CannotRunError, listen
from kms import backends
from tests import gcp_kms, ministack, openbao, softhsm
from tests.conftest import CAMPAIGN
from tests.flows.test_sdk_client import decide
from tests.live import ROOT, LiveRegistry
from tests.waiting import until

pytestmark = pytest.mark.flow

EXPECTED = [
    ("✓ allowed", "read calendar/work", "200", "—"),
    ("✗ refused", "send the same request again", "401", "invalid_dpop_proof/replayed"),
    ("✗ refused", "read files/reports", "403", "insufficient_scope/no_capability"),
    ("✓ allowed", "pay 20.00 EUR to ACME", "201", "—"),
    ("✗ refused", "pay 80.00 EUR to ACME", "403", "step_up_required/confirm_above"),
    ("✓ allowed", "pay 80.00 EUR to ACME, confirmed", "201", "—"),
    ("✗ refused", "pay the same 80.00 EUR once more", "409", "already_processed"),
    ("✗ refused", "pay 30.00 EUR to ACME", "429", "envelope_exceeded/budget"),
    ("✗ refused", "read calendar/work after that", "401", "invalid_token/grant_inactive"),
]


Settings = AbstractContextManager[dict[str, str]]
# In a registry's directory.
DATABASE = "agentauth.sqlite3"
# Longer than the whole demo takes, on a busy machine too.
HANGS_SECONDS = 600


@contextlib.contextmanager
def file_with_passphrase(home: Path) -> Iterator[dict[str, str]]:
    path = home / "passphrase"
    path.touch(0o600)
    path.write_text("a-passphrase-of-tests\n")
    yield {"KEY_BACKEND": "file", "KEY_FILE_PASSPHRASE_FILE": str(path)}


@contextlib.contextmanager
def vault(home: Path) -> Iterator[dict[str, str]]:
    with openbao.server(home) as url:
        yield {"KEY_BACKEND": "vault", "VAULT_ADDR": url, "VAULT_TOKEN": openbao.ROOT_TOKEN}


@contextlib.contextmanager
def awskms(home: Path) -> Iterator[dict[str, str]]:
    with ministack.server(home) as url:
        yield {
            "KEY_BACKEND": "awskms:eu-central-1",
            "AWS_ENDPOINT_URL_KMS": url,
            "AWS_ACCESS_KEY_ID": "of-a-test",
            "AWS_SECRET_ACCESS_KEY": "of-a-test",
        }


@contextlib.contextmanager
def gcpkms(home: Path) -> Iterator[dict[str, str]]:
    with gcp_kms.service(home) as service:
        yield {"KEY_BACKEND": f"gcpkms:{gcp_kms.RING}", **service.env}


@contextlib.contextmanager
def pkcs11(home: Path) -> Iterator[dict[str, str]]:
    yield {"KEY_BACKEND": f"pkcs11:{softhsm.LABEL}", **softhsm.token(home)}


# Name → the scheme of its key addresses, and the settings it needs. A new kind of key storage is
# one line here.
HOMES: dict[str, tuple[str, Callable[[Path], Settings]]] = {
    "awskms": ("awskms", awskms),
    "file with passphrase": ("file", file_with_passphrase),
    "gcpkms": ("gcpkms", gcpkms),
    "pkcs11": ("pkcs11", pkcs11),
    "vault": ("vault", vault),
}


class Demo:
    """The demo as a process; `on` is called with each line it prints."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.demo"],
            cwd=ROOT,
            env={**env, "COLUMNS": "160"},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def run(self, on: Callable[[str], None]) -> int:
        watchdog = threading.Timer(HANGS_SECONDS, self.process.kill)
        watchdog.start()
        try:
            with self.process:
                assert self.process.stdout is not None
                for line in self.process.stdout:
                    self.lines.append(line.rstrip("\n"))
                    on(self.lines[-1])
            return self.process.returncode
        finally:
            watchdog.cancel()


def asked(registry: LiveRegistry, question: str) -> list[str]:
    """The first column of a query, read from SQLite directly: far faster than a Django process."""
    file = registry.directory / DATABASE
    with contextlib.closing(
        sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)
    ) as database:
        return [str(row[0]) for row in database.execute(question)]


def grant_id_of(registry: LiveRegistry) -> str:
    """The newest grant in the registry."""
    [newest] = asked(registry, "SELECT id FROM registry_grant ORDER BY id DESC LIMIT 1")
    return str(uuid.UUID(newest))


# CI runs the demo with one key storage, `make long` with each, `make campaign` with each and each
# algorithm. tests/production has its keys in OpenBao.
_IN_CI = "file with passphrase"
_ALGORITHMS = {
    "awskms": "ES256",
    "file with passphrase": "ES256",
    "gcpkms": "EdDSA",
    "pkcs11": "ES256",
    "vault": "EdDSA",
}
_PARAMETERS = [
    pytest.param(
        (name, alg),
        id=f"{name}-{alg}",
        marks=[
            *([pytest.mark.softhsm] if name == "pkcs11" else []),
            *([] if name == _IN_CI else [pytest.mark.long]),
        ],
    )
    for name in HOMES
    for alg in ("EdDSA", "ES256")
    if CAMPAIGN or _ALGORITHMS[name] == alg
]


@pytest.fixture(params=_PARAMETERS)
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LiveRegistry]:
    """A registry with its keys in one kind of storage, and the jobs of `make run`."""
    name, algorithm = request.param
    scheme, settings = HOMES[name]
    with settings(tmp_path) as env:
        made = LiveRegistry(tmp_path, workers=2, env={**env, "KEY_ALGORITHM": algorithm})
        made.prepare()
        assert {uri.partition(":")[0] for uri in asked(made, "SELECT uri FROM kms_key")} == {scheme}
        made.start()
        with subprocess.Popen(
            [sys.executable, "manage.py", "jobs"], cwd=ROOT, env=made.env
        ) as jobs:
            yield made
            assert jobs.poll() is None
            jobs.terminate()
        made.stop()


def after(line: str, label: str) -> str | None:
    match = re.fullmatch(rf"{label}: (\S+)", line)
    return match[1] if match else None


@pytest.fixture
def _jobs(sqlite_registry: LiveRegistry) -> Iterator[None]:
    """The jobs that `make run` runs beside the server, which number the events."""
    command = [sys.executable, "manage.py", "jobs"]
    with subprocess.Popen(command, cwd=ROOT, env=sqlite_registry.env) as process:
        try:
            # They have begun once they numbered what was there. The demo waits only for seconds.
            waiting = "SELECT 1 FROM audit_queueentry LIMIT 1"
            until(lambda: not asked(sqlite_registry, waiting), "the jobs number nothing")
            yield
            assert process.poll() is None
        finally:
            process.terminate()


@contextlib.contextmanager
def deciding(registry: LiveRegistry) -> Iterator[Callable[[str, str], None]]:
    """Makes decisions in a process that is ready before the first link appears."""
    command = [sys.executable, "-m", "tests.decide"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env=registry.env, stdin=pipe, stdout=pipe, text=True
    ) as process:

        def decided(act: str, identifier: str) -> None:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps({"act": act, "id": identifier}) + "\n")
            process.stdin.flush()
            assert process.stdout.readline()

        yield decided


def told(registry: LiveRegistry) -> str:
    """The demo's output when the user agrees to everything; asserts its decisions are EXPECTED."""
    demo = Demo(registry.env)
    with deciding(registry) as decided:

        def human(line: str) -> None:
            if after(line, "Claim code"):
                decided("approve", grant_id_of(registry))
            if url := after(line, "Confirm here"):
                decided("confirm", url.rstrip("/").rsplit("/", 1)[1])
            if after(line, "Revoke here"):
                decided("revoke", grant_id_of(registry))

        code = demo.run(human)
    assert code == 0, demo.lines
    shown = [line for line in demo.lines if line.startswith(("✓ allowed", "✗ refused"))]
    assert [tuple(re.split(r"  +", line)[:4]) for line in shown] == EXPECTED, demo.lines
    return "\n".join(demo.lines)


def test_every_home_is_here() -> None:
    assert {scheme for scheme, _ in HOMES.values()} == set(backends.BACKENDS)


@pytest.mark.long
def test_the_demo_is_the_same_wherever_keys_are(elsewhere: LiveRegistry) -> None:
    """Only the settings differ."""
    told(elsewhere)


@pytest.mark.usefixtures("_jobs")
def test_the_demo_shows_what_is_allowed_and_why_the_rest_is_not(
    sqlite_registry: LiveRegistry,
) -> None:
    text = told(sqlite_registry)
    # Each log line has its number, including the verifier's decisions.
    log = text.split("What the audit log says about it")[1]
    for kind in ("registry.agent.registered", "registry.grant.approved", "registry.grant.revoked"):
        assert kind in log
    assert log.count("replayed") == 1
    assert "…" not in log
    keys = list((Path(sqlite_registry.directory) / "demo" / "agents").glob("*.json"))
    assert [key.stat().st_mode & 0o777 for key in keys] == [0o600]
    assert "DPoP" not in text
    assert (
        json.loads(
            (Path(sqlite_registry.directory) / "demo" / "service_provider.json").read_text()
        )["client_secret"]
        not in text
    )


def test_the_demo_service_moves_where_its_port_is_taken(sqlite_registry: LiveRegistry) -> None:
    with contextlib.ExitStack() as held:

        def is_taken() -> bool:
            with contextlib.suppress(CannotRunError):
                held.enter_context(listen("127.0.0.1", USUAL_PORT))
                return True
            return False

        # Another demo may hold the port, and end before ours looks. One that goes on will do.
        with contextlib.suppress(AssertionError):
            until(is_taken, "another demo holds the port")
        demo = Demo(sqlite_registry.env)

        def human(line: str) -> None:
            if after(line, "Claim code"):
                decide(sqlite_registry, "deny", grant_id_of(sqlite_registry))

        assert demo.run(human) == 0, demo.lines
    place = re.fullmatch(
        r"The demo service is at http://127\.0\.0\.1:(\d+), the registry at .*", demo.lines[0]
    )
    assert place
    assert place[1] != str(USUAL_PORT)


def test_a_denied_demo_does_nothing(sqlite_registry: LiveRegistry) -> None:
    demo = Demo(sqlite_registry.env)

    def human(line: str) -> None:
        if after(line, "Claim code"):
            decide(sqlite_registry, "deny", grant_id_of(sqlite_registry), reason="Not today.")

    assert demo.run(human) == 0
    assert "The request was denied. Not today." in demo.lines


def test_the_quickstart_asks_first_and_signs_once_it_is_approved(
    sqlite_registry: LiveRegistry, tmp_path: Path
) -> None:
    slug = sqlite_registry.manage("load_demo")["slug"]
    command = [
        sys.executable,
        "-m",
        "examples.quickstart",
        sqlite_registry.url,
        slug,
        "GET",
        "/calendar/work",
    ]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}

    def run() -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"A human must approve this first: {sqlite_registry.url}/claim/" in run()
    decide(sqlite_registry, "approve", grant_id_of(sqlite_registry))
    assert re.fullmatch(r"Authorization: DPoP \S+\nDPoP: \S+\n", run())


def test_without_a_registry_the_demo_says_so_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env={**os.environ, "PUBLIC_URL": "http://localhost:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "There is no registry at http://localhost:9. Start it first, in another terminal: make run"
    ]
