"""What a management command prints."""

import json
from io import StringIO
from typing import Any

from django.core.management import call_command


def output_of(*command: str, code: int = 0, **options: Any) -> str:
    """What the command prints on stdout; fails unless it exits with this code."""
    out, ended = StringIO(), 0
    try:
        call_command(*command, stdout=out, **options)
    except SystemExit as stopped:
        ended = int(str(stopped.code))
    assert ended == code, out.getvalue()
    return out.getvalue()


def json_of(*command: str, code: int = 0) -> dict[str, Any]:
    """The object that the command prints with `--json`; fails unless it exits with this code."""
    answer: dict[str, Any] = json.loads(output_of(*command, "--json", code=code))
    return answer
