"""The installed system behind the interface of the tests' live registries."""

import importlib
import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.db import connection

from tests.live import ROOT, LiveRegistry
from tests.production.units import PATH, production_settings

# Variables of this process that the services replace by their own.
_NOT_HANDED_ON = {
    "AGENTAUTH_TESTING",
    "DATABASE_URL",
    "REDIS_URL",
    "PROMETHEUS_MULTIPROC_DIR",
    "FAULT_AT",
    "PRODUCTION",
}


class ProductionRegistry(LiveRegistry):
    """A running installation: `url`, `manage`, `env`, `directory`. Tests never start or stop it."""

    def __init__(self, home: Path) -> None:
        told = json.loads((home / "installation.json").read_text())
        # `root` is where this project's commands run: the checkout.
        self.home, self.root, self.directory = home, ROOT, home / "var/lib/agentauth"
        # No audience may be below another, and all tests share this registry.
        self.services = f"https://{secrets.token_hex(8)}.example.org"
        self.url: str = told["url"]
        self.verifier_url: str = told["verifier_url"]
        self.web_url: str = told["web_url"]
        # The web server's own port, behind the proxy.
        self.port = urlsplit(self.web_url).port or 0
        # Service name on the page → port.
        self.ports: dict[str, int] = told["ports"]
        # The address of its bucket.
        self.s3_url: str = told["s3_url"]
        # Unit name → process id.
        self.processes: dict[str, int] = told["processes"]
        # Blocks of the page that must refuse a second run.
        self.guarded: list[str] = told["guarded"]
        # The block that creates the database roles, and PostgreSQL's log.
        self.roles: str = told["roles"]
        self.database_log = Path(told["database_log"])
        self.certificate = home / "etc/nginx/agentauth/certificate.pem"
        # For this project's own commands: this process's environment with the services' settings.
        outside = {name: value for name, value in os.environ.items() if name not in _NOT_HANDED_ON}
        self.env = outside | production_settings(home)

    @property
    def _command(self) -> str:
        return str(self.home / "usr/local/bin/agentauth")

    def launch(self) -> None:
        raise AssertionError("the installed system runs already, and others ask it")

    def act(self, module: str, act: str, told: Any, *, root: Path | None = None) -> Any:
        """Run it in this process, which has the services' settings and Django loaded."""
        try:
            return importlib.import_module(module).run_command(act, told)
        finally:
            # Some callers use threads of their own.
            connection.close()

    def run(self, *arguments: str) -> None:
        """Like `manage`, for a command without output."""
        subprocess.run([self._command, *arguments], env={"PATH": PATH}, check=True)

    def manage(self, *arguments: str, owner: bool = False, check: bool = True) -> Any:
        """Run a management command with `--json` by the page's own command; returns its output.

        None if it failed without output.
        """
        command = [self._command, *(["--owner"] if owner else []), *arguments]
        done = subprocess.run(
            [*command, "--json"], env={"PATH": PATH}, capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{arguments}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout or "null")
