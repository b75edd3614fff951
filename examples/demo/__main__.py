"""Runs the demo: finds the registry, loads demo data, starts the service provider and the agent."""

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from agentauth import AgentAuthClient
from agentauth.sdk import AgentAuthError
from agentauth.sdk.registry_http import ssl_context
from agentauth.sdk.url_checks import is_loopback
from examples.demo.agent import NAME, Story
from examples.demo.catalogue import publish_words
from examples.demo.printing import say

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 60
# Where the demo service listens, unless that is taken.
USUAL_PORT = 8001


class CannotRunError(Exception):
    """The demo cannot start; the message says in one line why, and what to do."""


def main() -> int:
    """Run the demo. Returns 0 if all went as expected, 1 if not, 130 if interrupted."""
    ArgumentParser(prog="python -m examples.demo", description=__doc__).parse_args()
    # So that SIGTERM stops the demo service too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        file, listening = prepared()
        credentials = json.loads(file.read_text())
        with service_provider(file, listening):
            say(
                f"The demo service is at {credentials['audience']}, the registry at "
                f"{credentials['registry_url']}."
            )
            publish_words(credentials)
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


def prepared() -> tuple[Path, socket.socket]:
    """The file with the service's credentials, and the socket it will listen on.

    DEMO_CREDENTIALS names the file if the registry is not the one of this checkout
    (examples/README.md). Raises CannotRunError.
    """
    if given := os.environ.get("DEMO_CREDENTIALS"):
        file = Path(given)
        credentials = json.loads(file.read_text())
        check_registry(credentials["registry_url"])
        host, _, port = (
            credentials.get("listen") or urlsplit(credentials["audience"]).netloc
        ).rpartition(":")
        return file, listen(host, int(port))
    check_registry(os.environ.get("PUBLIC_URL", "http://localhost:8000").rstrip("/"))
    listening = listen("127.0.0.1", USUAL_PORT, 0)
    return load_demo(f"http://127.0.0.1:{listening.getsockname()[1]}"), listening


def listen(host: str, *ports: int) -> socket.socket:
    """A socket on the first free one of `ports` (0: any). Raises CannotRunError if none is."""
    for port in ports:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, port))
            # Two programs can bind a port until one of them listens.
            made.listen()
        except OSError:
            made.close()
        else:
            return made
    raise CannotRunError(f"Something else is running at {host}:{ports[-1]}. Stop it first.")


def check_registry(url: str) -> None:
    """Raises CannotRunError unless the registry answers."""
    if not _answers(f"{url}/health/ready"):
        raise CannotRunError(
            f"There is no registry at {url}. Start it first, in another terminal: make run"
        )


def load_demo(audience: str) -> Path:
    """Register the demo service at `audience` if needed. Returns the file with its credentials."""
    done = subprocess.run(  # noqa: S603 — our own command
        [sys.executable, "manage.py", "load_demo", "--audience", audience, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotRunError(f"load_demo failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return Path(json.loads(done.stdout)["file"])


def new_key_file(directory: Path) -> Path:
    """A new agent at every run; its key stays under var/demo/."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return directory / "agents" / f"{stamp}-{secrets.token_hex(2)}.json"


@contextmanager
def service_provider(file: Path, listening: socket.socket) -> Iterator[None]:
    """The demo service provider with the credentials in `file`, running as long as the block."""
    credentials = json.loads(file.read_text())
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "examples.demo.service_provider:application()",
        "--bind",
        f"fd://{listening.fileno()}",
    ]
    if "certificate" in credentials:
        command += [
            "--certfile",
            credentials["certificate"],
            "--keyfile",
            credentials["certificate_key"],
        ]
    # One process, because payments live in memory. gunicorn 27 would put its control socket into
    # the home directory.
    command += [
        "--worker-class",
        "gthread",
        "--threads",
        "4",
        "--no-control-socket",
        "--log-level",
        "warning",
    ]
    environment = {
        name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"
    }
    process = subprocess.Popen(  # noqa: S603 — our own command
        command,
        cwd=ROOT,
        env={**environment, "DEMO_CREDENTIALS": str(file)},
        pass_fds=[listening.fileno()],
        start_new_session=True,
    )
    # The service owns the port now: if it does not start, the port must not appear open.
    listening.close()
    try:
        _wait_for(credentials["audience"], process)
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(START_SECONDS)


def _wait_for(audience: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(f"{audience}/"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise CannotRunError(f"The demo service did not start at {audience}.")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    """Whether `url` answers, with the CAs of agent and service: SSL_CERT_FILE or the system's."""
    try:
        return httpx.get(
            url, verify=ssl_context(), trust_env=not is_loopback(url), timeout=15
        ).is_success
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    sys.exit(main())
