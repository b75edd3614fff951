"""The installed system as the tests of live servers know a registry."""

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

# Of this process's environment; the services have their own.
_NOT_HANDED_ON = {
    "AGENTAUTH_TESTING",
    "DATABASE_URL",
    "REDIS_URL",
    "PROMETHEUS_MULTIPROC_DIR",
    "FAULT_AT",
    "PRODUCTION",
}


class ProductionRegistry(LiveRegistry):
    """A running installation: `url`, `manage`, `env` and `directory`. It is not the tests' to start and stop."""

    def __init__(self, home: Path) -> None:
        told = json.loads((home / "installation.json").read_text())
        # `root` is where our own commands run: in the checkout.
        self.home, self.root, self.directory = home, ROOT, home / "var/lib/agentauth"
        # No audience may be below another's, and all tests share this registry.
        self.services = f"https://{secrets.token_hex(8)}.example.org"
        self.url: str = told["url"]
        self.verifier_url: str = told["verifier_url"]
        self.web_url: str = told["web_url"]
        # Of the web server itself, behind the proxy.
        self.port = urlsplit(self.web_url).port or 0
        # Of each service, by its name on the page.
        self.ports: dict[str, int] = told["ports"]
        # Where its bucket is.
        self.s3_url: str = told["s3_url"]
        # By the name of its unit.
        self.processes: dict[str, int] = told["processes"]
        # Blocks of the page that must refuse to run a second time.
        self.guarded: list[str] = told["guarded"]
        self.certificate = home / "etc/nginx/agentauth/certificate.pem"
        # Our own commands, in this process's environment, with the settings of its services.
        outside = {name: value for name, value in os.environ.items() if name not in _NOT_HANDED_ON}
        self.env = outside | production_settings(home)

    @property
    def _command(self) -> str:
        return str(self.home / "usr/local/bin/agentauth")

    def launch(self) -> None:
        raise AssertionError("the installed system runs already, and others ask it")

    def act(self, module: str, act: str, told: Any, *, root: Path | None = None) -> Any:
        """In this process, whose settings are those of the services: it has Django up already."""
        try:
            return importlib.import_module(module).made(act, told)
        finally:
            # Some ask in threads of their own.
            connection.close()

    def run(self, *arguments: str) -> None:
        """As `manage`, of a command that says nothing."""
        subprocess.run([self._command, *arguments], env={"PATH": PATH}, check=True)

    def manage(self, *arguments: str, owner: bool = False, check: bool = True) -> Any:
        """Run a management command with `--json`, by the page's own command; its answer, None where it failed and said nothing."""
        command = [self._command, *(["--owner"] if owner else []), *arguments]
        done = subprocess.run(
            [*command, "--json"], env={"PATH": PATH}, capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{arguments}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout or "null")
