"""The registry's WSGI application, whose process dies before a statement of a request that a test names.

The file that FAULT_AT names holds `METHOD /path's end N`: of a request of that kind, the process kills itself as by `kill -9`
before its Nth statement, whoever wrote that: it need not be a point that has a name.
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
    """Dies where the statement of that number would be run."""

    def __init__(self, at: int) -> None:
        self._at, self._numbers = at, count(1)

    def __call__(self, execute: Callable[..., Any], *rest: Any) -> Any:
        if next(self._numbers) == self._at:
            os.kill(os.getpid(), signal.SIGKILL)
        return execute(*rest)
