"""What the server writes to its log names no link that gives rights by itself."""

import io
import logging
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from agentauth.log_lines import LineFormatter

LOGGING: dict[str, Any] = settings.LOGGING
SECRET = "T7zW6WspwielpVUSQnHIrg"


@pytest.mark.django_db
@pytest.mark.parametrize(
    "path", [f"/claim/{SECRET}/statement", f"/setup/{SECRET}/", f"/setup/{SECRET}/finish"]
)
def test_DJ_28_the_secret_of_a_link_stands_in_no_log_line(path: str) -> None:
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(LineFormatter(LOGGING["formatters"]["line"]["format"], style="{"))
    logging.getLogger("django").addHandler(handler)
    try:
        Client().post(path, "{}", content_type="application/json")
        Client(headers={"Origin": "http://localhost:8000"}).get(path)
    finally:
        logging.getLogger("django").removeHandler(handler)
    assert path.split("/")[1] in lines.getvalue()
    assert SECRET not in lines.getvalue()


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
