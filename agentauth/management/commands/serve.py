"""`serve`: run the whole system on one host, the embedded default.

Migrates, creates keys, prints the setup link, then starts the web server and the jobs and restarts
them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from functools import partial
from io import StringIO
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from agentauth.protocol.errors import InvalidStateError
from agentauth.server.orphans import end_with_parent
from audit.management.base_commands import OPERATOR
from registry.services.settings_agreement import fingerprint, record_settings

POLL_SECONDS = 0.2
STOP_SECONDS = 30
# How long to wait for a port in use (s): a server that was just stopped is about to release it.
PORT_SECONDS = 5
# A part that dies is restarted; after this many deaths within RESTARTS_SECONDS the whole system
# stops, so that the failure shows.
RESTARTS = 5
RESTARTS_SECONDS = 60.0


class Command(BaseCommand):
    help = "Start the whole system: database, keys, web server and periodic jobs."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--workers", type=int, default=settings.WEB_CONCURRENCY, help="web server processes"
        )
        parser.add_argument(
            "--no-setup-link", action="store_true", help="do not print a link for the first admin"
        )
        parser.add_argument(
            "--json", action="store_true", help="print one JSON object at the start"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["workers"] < 1:
            raise CommandError("--workers must be at least 1.")
        check_port_is_free(_port())
        call_command("migrate", interactive=False, verbosity=0)
        # This command starts the whole system, so its environment decides the settings.
        try:
            record_settings(change=fingerprint(), actor=OPERATOR, now=timezone.now())
        except InvalidStateError as error:
            raise CommandError(error.description) from error
        call_command("ensure_keys", verbosity=0)
        # Before the server starts, so that no server process ever prints a link that grants rights.
        if options["json"]:
            link = {} if options["no_setup_link"] else first_link()
            said = {"setup_url": link.get("url"), "expires_at": link.get("expires_at")}
            self.stdout.write(json.dumps({"url": settings.PUBLIC_URL} | said))
        else:
            if not options["no_setup_link"]:
                call_command("setup_link", first_start=True)
            self.stdout.write(f"AgentAuth is at {settings.PUBLIC_URL}  (Ctrl-C stops it)")
        self.stdout.flush()
        os.environ["WEB_CONCURRENCY"] = str(options["workers"])
        web = [sys.executable, "-m", "agentauth", "web", "--bind", f"127.0.0.1:{_port()}"]
        supervise([web, [sys.executable, "manage.py", "jobs"]])


def first_link() -> dict[str, str]:
    """The link for the first administrator; empty if there is one already."""
    out = StringIO()
    call_command("setup_link", "--json", first_start=True, stdout=out)
    return dict(json.loads(out.getvalue()))


def _port() -> int:
    return urlsplit(settings.PUBLIC_URL).port or 80


def check_port_is_free(port: int) -> None:
    """Wait up to PORT_SECONDS for the port. Raises CommandError if it stays in use.

    Otherwise the links printed next would lead to another server.
    """
    deadline = time.monotonic() + PORT_SECONDS
    while error := _bind_error(port):
        if time.monotonic() > deadline:
            raise CommandError(
                f"Port {port} on 127.0.0.1 cannot be used: {error.strerror}. Stop the program "
                "that uses it (another `make run`?), or choose another port, the same for `make "
                "demo`: make run PUBLIC_URL=http://localhost:8010"
            )
        time.sleep(POLL_SECONDS)


def _bind_error(port: int) -> OSError | None:
    with socket.socket() as probe:
        # As gunicorn does, so that connections of a server stopped just now do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error
    return None


def start_part(command: list[str]) -> subprocess.Popen[bytes]:
    """Start it in its own session: Ctrl-C reaches only us, and we stop the parts in order.

    If we are killed, the kernel stops them.
    """
    return subprocess.Popen(  # noqa: S603 — our own commands
        command,
        start_new_session=True,
        # preexec_fn is unsafe with threads; we have none.
        preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509
    )


def supervise(commands: list[list[str]]) -> None:
    """Run `commands` side by side until SIGTERM or SIGINT, and restart a part that died.

    Raises SystemExit after RESTARTS deaths within RESTARTS_SECONDS.
    """
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    parts = [start_part(command) for command in commands]
    deaths = deque[float](maxlen=RESTARTS)
    while not stopping and not _too_many(deaths):
        time.sleep(POLL_SECONDS)
        for index, part in enumerate(parts):
            if part.poll() is not None and not stopping:
                deaths.append(time.monotonic())
                parts[index] = start_part(commands[index])
    for part in parts:
        part.terminate()
    for part in parts:
        try:
            part.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            part.kill()
    if not stopping:
        sys.exit("a part of the system keeps stopping: see the lines above")


def _too_many(deaths: deque[float]) -> bool:
    return len(deaths) == RESTARTS and deaths[-1] - deaths[0] < RESTARTS_SECONDS
