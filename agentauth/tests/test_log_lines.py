"""What the server writes to its log names no link that gives rights by itself."""

import logging
from typing import Any

import pytest
from django.conf import settings

from agentauth.log_lines import LineFormatter

LOGGING: dict[str, Any] = settings.LOGGING
SECRET = "T7zW6WspwielpVUSQnHIrg"


@pytest.mark.parametrize("path", [f"/claim/{SECRET}/statement", f"/setup/{SECRET}/", f"/setup/{SECRET}"])
def test_DJ_28_the_secret_of_a_link_stands_in_no_log_line(path: str) -> None:
    found = logging.LogRecord("x", logging.ERROR, "", 1, "unhandled error in %s", (path,), None)
    line = LineFormatter().format(found)
    assert path.split("/")[1] in line
    assert SECRET not in line


def test_DJ_28_encoded_links_and_tracebacks_are_cut_too() -> None:
    error = ValueError(f"GET /sign-in/?next=%2Fclaim%2F{SECRET}%2F")
    found = logging.LogRecord(
        "x", logging.ERROR, "", 1, f"at /setup/{SECRET}", None, (ValueError, error, None)
    )
    line = LineFormatter().format(found)
    assert SECRET not in line
    assert "%2Fclaim%2F…%2F" in line


def test_DJ_28_every_handler_writes_such_lines() -> None:
    assert LOGGING["formatters"]["line"]["class"].endswith("LineFormatter")
    assert {handler["formatter"] for handler in LOGGING["handlers"].values()} == {"line"}
    # Else gunicorn would write the addresses of failed requests by a handler of its own.
    assert LOGGING["loggers"]["gunicorn.error"]["handlers"] == ["stderr"]
