"""Runs commands in forks with the slow imports done: half the cost of a new Python process."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
# None of these modules reads settings.
_FORKS.set_forkserver_preload(
    [
        "django.core.management",
        "django.db.models",
        "django.urls",
        "psycopg",
        "redis.asyncio",
        "requests",
        "webauthn",
    ]
)


def manage(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `python manage.py` with these arguments in the current directory."""
    with tempfile.TemporaryDirectory() as folder:
        process = _FORKS.Process(target=_manage, args=(arguments, dict(env), folder))
        process.start()
        process.join(60)
        assert process.exitcode is not None, f"{arguments} takes for ever"
        out, errors = (Path(folder, name).read_text() for name in ("out", "errors"))
    return subprocess.CompletedProcess(arguments, process.exitcode, out, errors)


def _manage(arguments: Sequence[str], env: Mapping[str, str], folder: str) -> None:
    for number, name in ((1, "out"), (2, "errors")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["manage.py", *arguments]
    runpy.run_path("manage.py", run_name="__main__")
