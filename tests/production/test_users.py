"""The users of docs/install.md and the sandbox: what a process of the installation can reach."""

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.production.environment import USERS, service_user
from tests.production.registry import ProductionRegistry
from tests.production.units import PATH, read_environment
from tests.systemd import exposed, needs_systemd

pytestmark = pytest.mark.production
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run services as other users")
VERIFIER = "agentauth-verifier"


def readable(pids: Iterable[int], *, user: str) -> list[int]:
    """Those of the processes whose environment a process of this user can read."""
    found = []
    for pid in pids:
        done = subprocess.run(  # type: ignore[call-overload]
            ["/bin/cat", f"/proc/{pid}/environ"],
            check=False, capture_output=True, cwd="/", **service_user(user),
        )  # fmt: skip
        if done.returncode == 0:
            assert b"PATH=" in done.stdout
            found.append(pid)
        else:
            assert b"Permission denied" in done.stderr, done.stderr
    return found


@contextmanager
def owner_command(production: ProductionRegistry) -> Iterator[int]:
    """The process id of a running command with the owner's password."""
    command = [str(production.home / "usr/local/bin/agentauth"), "--owner"]
    code = "import sys; print('started', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [*command, "shell", "--no-imports", "-c", code],
        env={"PATH": PATH}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == b"started\n"
        yield process.pid
        # Its input ends here, and so does the command.
        assert process.stdin
        process.stdin.close()


@as_root
def test_the_verifier_reads_the_environment_of_no_other_service(
    production: ProductionRegistry,
) -> None:
    own = production.processes[VERIFIER]
    assert len(production.processes) > 5
    assert readable(production.processes.values(), user=VERIFIER) == [own]


@as_root
def test_no_service_reads_the_environment_of_a_command_with_the_owners_password(
    production: ProductionRegistry,
) -> None:
    with owner_command(production) as pid:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert f"DATABASE_OWNER_URL={owner_url(production)}".encode() in environment
        for user in set(USERS) - {"agentauth-owner"}:
            assert readable([pid], user=user) == [], user


def test_the_verifier_has_no_login_but_its_own(production: ProductionRegistry) -> None:
    text = Path(f"/proc/{production.processes[VERIFIER]}/environ").read_text()
    names = {each.partition("=")[0] for each in text.split("\0") if each}
    # The names of all its variables: one more is one more thing to think about.
    assert names == {
        *("PATH", "LANG", "VAR_DIR"),
        *("PUBLIC_URL", "TRUSTED_PROXIES", "SECRET_KEY", "SUBJECT_KEY", "METRICS_TOKEN"),
        *("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL", "WEB_CONCURRENCY"),
        *("KEY_BACKEND", "VAULT_ADDR", "VAULT_ROLE_ID", "AUDIT_STORE"),
    }
    settings = read_environment(production.home / "etc/agentauth/agentauth.env")
    for url in (settings["DATABASE_URL"], owner_url(production)):
        password = urlsplit(url).password
        assert password
        assert password not in text


def owner_url(production: ProductionRegistry) -> str:
    settings = read_environment(production.home / "etc/agentauth/owner.env")
    return settings["DATABASE_OWNER_URL"]


@as_root
@pytest.mark.parametrize("user", sorted(USERS))
def test_no_user_of_a_process_reads_a_file_of_settings(
    production: ProductionRegistry, user: str
) -> None:
    files = list((production.home / "etc/agentauth").iterdir())
    assert len(files) >= 4
    done = subprocess.run(  # type: ignore[call-overload]
        ["/bin/cat", *files], check=False, capture_output=True, cwd="/", **service_user(user)
    )
    assert done.stdout == b""
    assert done.stderr.count(b"Permission denied") == len(files)


@needs_systemd
def test_each_installed_unit_runs_in_a_sandbox(
    production: ProductionRegistry, tmp_path: Path
) -> None:
    installed = production.home / "etc/systemd/system"
    for file in filter(Path.is_file, installed.rglob("*")):
        copy = tmp_path / file.relative_to(installed)
        copy.parent.mkdir(exist_ok=True)
        # With the paths of the page: systemd refuses a working directory below /dev/shm.
        copy.write_text(file.read_text().replace(str(production.home), ""))
    units = sorted(tmp_path.glob("*.service"))
    assert {"openbao", *(f"agentauth-{each}" for each in ("web", "verifier", "worker"))} < {
        each.stem for each in units
    }
    assert exposed(units) == {}
