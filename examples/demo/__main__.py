"""Brings the demo together: looks for the registry, loads the demo data, starts the service provider, tells the story."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from agentauth import AgentAuthClient
from agentauth.sdk import AgentAuthError
from examples.demo.printing import say
from examples.demo.story import NAME, Story

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 20


class CannotRunError(Exception):
    """The demo cannot begin; the message is the one line that says why and what to do."""


def main() -> int:
    """Run the demo: 0 as it should be, 1 not, 130 when interrupted."""
    ArgumentParser(prog="python -m examples.demo", description=__doc__).parse_args()
    # So that the demo service is stopped with us whoever ends the demo.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        check_registry(os.environ.get("PUBLIC_URL", "http://localhost:8000").rstrip("/"))
        file, credentials = load_demo()
        with service_provider(file, credentials["audience"]):
            say(
                f"The demo service is at {credentials['audience']}, the registry at {credentials['registry_url']}."
            )
            client = AgentAuthClient(
                credentials["registry_url"], key_file=new_key_file(file.parent), name=NAME
            )
            return asyncio.run(Story(client, credentials["slug"], credentials["audience"]).tell())
    except CannotRunError as error:
        print(error, file=sys.stderr)
        return 1
    except AgentAuthError as error:
        print(f"The demo stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def check_registry(url: str) -> None:
    """Raises CannotRunError unless the registry answers."""
    try:
        ready = httpx.get(f"{url}/health/ready", trust_env=False, timeout=5).is_success
    except httpx.HTTPError:
        ready = False
    if not ready:
        raise CannotRunError(f"There is no registry at {url}. Start it first, in another terminal: make run")


def load_demo() -> tuple[Path, dict[str, Any]]:
    """Make sure the registry knows the demo service; the file with its credentials, and what is in it."""
    done = subprocess.run(
        [sys.executable, "manage.py", "load_demo", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotRunError(f"load_demo failed: {(done.stderr or done.stdout).strip()[-300:]}")
    file = Path(json.loads(done.stdout)["file"])
    return file, json.loads(file.read_text())


def new_key_file(directory: Path) -> Path:
    """A new agent at every run; its key stays under var/demo/."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return directory / "agents" / f"{stamp}-{secrets.token_hex(2)}.json"


@contextmanager
def service_provider(file: Path, audience: str) -> Iterator[None]:
    """The demo service provider, running as long as the block."""
    address = urlsplit(audience).netloc
    if _answers(audience):
        raise CannotRunError(f"Something else is running at {audience}. Stop it first.")
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "examples.demo.service_provider:application()",
        "--bind",
        address,
    ]
    # One process: its payments live in memory. The control socket of gunicorn 27 would lie in the home directory.
    command += [
        "--worker-class",
        "gthread",
        "--threads",
        "4",
        "--no-control-socket",
        "--log-level",
        "warning",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    process = subprocess.Popen(  # noqa: S603 — our own command
        command, cwd=ROOT, env={**environment, "DEMO_CREDENTIALS": str(file)}, start_new_session=True
    )
    try:
        _wait_for(audience, process)
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(START_SECONDS)


def _wait_for(audience: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(audience):
        if process.poll() is not None or time.monotonic() > deadline:
            raise CannotRunError(f"The demo service did not start at {audience}.")
        time.sleep(0.1)


def _answers(audience: str) -> bool:
    try:
        httpx.get(f"{audience}/", trust_env=False, timeout=2)
    except httpx.HTTPError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
