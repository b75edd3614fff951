"""As much of systemd as the units of docs/install.md need: start, stop and restart by name."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.production.environment import USERS, service_user

STOP_SECONDS = 35
# systemd's default.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"


class Units:
    """One machine's services, below `root`. `beside` starts packaged ones."""

    def __init__(self, root: Path, logs: Path, beside: dict[str, Sequence[str]]) -> None:
        self.directory, self.run = root / "etc/systemd/system", root / "run"
        self.logs, self.beside = logs, beside
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def systemctl(self, *arguments: str) -> None:
        """`restart nginx`, `enable --now a b` and so on: only what the page uses."""
        act, *names = [each for each in arguments if each != "--now"]
        acts: dict[str, Callable[[str], None]] = {
            "enable": self.start,
            "disable": self.stop,
            "restart": self._restart,
            "reload": self._restart,
            "is-active": self._check_active,
        }
        if act == "daemon-reload":
            return
        for name in names:
            acts[act](name)

    def start(self, name: str) -> None:
        if name in self.beside:
            self._launch(name, list(self.beside[name]), dict(os.environ), {})
            return
        unit = self._read(name)
        [user] = unit["User"]
        env = {"PATH": PATH, "LANG": "C.UTF-8"}
        for setting in unit.get("Environment", []):
            variable, _, value = setting.partition("=")
            env[variable] = value.replace("%t", str(self.run))
        for folder in unit.get("RuntimeDirectory", []):
            self._make_empty(self.run / folder, user)
        for file in unit.get("EnvironmentFile", []):
            if Path(file.removeprefix("-")).exists() or not file.startswith("-"):
                env |= read_environment(Path(file.removeprefix("-")))
        how: dict[str, object] = {"cwd": unit.get("WorkingDirectory", ["/"])[0]}
        command = shlex.split(unit["ExecStart"][0].replace("%%", "%"))
        self._launch(name, command, env, how | service_user(user))

    def stop(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        finally:
            # End the whole process group, as systemd does.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def stop_all(self) -> None:
        for name in reversed(list(self.running)):
            self.stop(name)

    def dead(self) -> list[str]:
        """Services that ended without being stopped."""
        return [name for name, process in self.running.items() if process.poll() is not None]

    def _check_active(self, name: str) -> None:
        process = self.running.get(name)
        assert process is not None, f"{name} was not started"
        assert process.poll() is None, f"{name} has ended"

    def _restart(self, name: str) -> None:
        if name in self.running:
            self.stop(name)
        self.start(name)

    def _make_empty(self, folder: Path, user: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        if os.geteuid() == 0:
            os.chown(folder, *USERS[user])

    def _launch(
        self, name: str, command: list[str], env: dict[str, str], how: dict[str, object]
    ) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(  # type: ignore[call-overload]
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **how,
            )

    def _read(self, name: str) -> dict[str, list[str]]:
        told: dict[str, list[str]] = {}
        for line in (self.directory / f"{name}.service").read_text().splitlines():
            key, is_setting, value = line.partition("=")
            if is_setting:
                told.setdefault(key, []).append(value)
        return told


def production_settings(root: Path) -> dict[str, str]:
    """The settings of the installation below `root`, and the authority its clients trust."""
    trusted = str(root / "etc/nginx/agentauth/certificate.pem")
    told = read_environment(root / "etc/agentauth/agentauth.env")
    return told | {"SSL_CERT_FILE": trusted, "NODE_EXTRA_CA_CERTS": trusted}


def read_environment(file: Path) -> dict[str, str]:
    """NAME='value' lines; the last one of a name counts."""
    return {
        found[1]: found[2]
        for line in file.read_text().splitlines()
        if (found := re.fullmatch(r"([A-Z0-9_]+)='(.*)'", line))
    }
