"""The registry's WSGI application, which kills itself before a chosen SQL statement of a request.

The file in FAULT_AT holds `METHOD /path's end N`: in such a request, the process kills itself with
SIGKILL before its Nth statement, whatever code issued it. So deaths are not limited to named fault
points.
"""

import os
import signal
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection

from agentauth.wsgi import application as registry


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    told = Path(settings.FAULT_AT.removeprefix("@"))
    method, end, number = (told.read_text() if told.exists() else "").split() or ("", "", "0")
    if environ["REQUEST_METHOD"] != method or not environ["PATH_INFO"].endswith(end):
        return registry(environ, start_response)
    with connection.execute_wrapper(Dying(int(number))):
        return registry(environ, start_response)


class Dying:
    """Counts the statements, and dies before the chosen one."""

    def __init__(self, at: int) -> None:
        self._at, self._numbers = at, count(1)

    def __call__(self, execute: Callable[..., Any], *rest: Any) -> Any:
        if next(self._numbers) == self._at:
            os.kill(os.getpid(), signal.SIGKILL)
        return execute(*rest)
