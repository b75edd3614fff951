"""Log output: one line per entry, no links that carry secrets, no terminal control characters."""

import json
import logging
from typing import Any

import pytest
from django.conf import settings

from agentauth.observability.logging_config import (
    JsonFormatter,
    LineFormatter,
    logging_config,
    request_id,
)

LOGGING: dict[str, Any] = settings.LOGGING
SECRET = "T7zW6WspwielpVUSQnHIrg"
HOSTILE = 'first\r\nsecond {"level": "info"}\x1b[31mred\x00\x9b\u2028end'


def record(message: str, *args: object, error: Exception | None = None) -> logging.LogRecord:
    raised = None if error is None else (type(error), error, None)
    return logging.LogRecord("x", logging.ERROR, "", 1, message, args, raised)


@pytest.mark.parametrize(
    "path",
    [f"/claim/{SECRET}/statement", f"/setup/{SECRET}/", f"/setup/{SECRET}", f"/recover/{SECRET}/"],
)
@pytest.mark.parametrize("formatter", [LineFormatter(), JsonFormatter()])
def test_DJ_28_no_log_line_contains_the_secret_of_a_link(
    formatter: logging.Formatter, path: str
) -> None:
    line = formatter.format(record("unhandled error in %s", path))
    assert path.split("/")[1] in line
    assert SECRET not in line


@pytest.mark.parametrize("formatter", [LineFormatter(), JsonFormatter()])
def test_DJ_28_encoded_links_and_tracebacks_are_cut_too(formatter: logging.Formatter) -> None:
    error = ValueError(f'GET "/sign-in/?next=%2Fclaim%2F{SECRET}%2F", /setup/{SECRET}"')
    line = formatter.format(record(f'at "/setup/{SECRET}"', error=error))
    assert SECRET not in line
    assert "%2Fclaim%2F" in line


def test_AU_23_a_json_line_is_one_line_whatever_is_in_it() -> None:
    found = record("said %s", HOSTILE, error=ValueError(HOSTILE))
    found.members = {"route": HOSTILE}
    line = JsonFormatter().format(found)
    assert line.isascii()
    assert line.isprintable()
    read = json.loads(line)
    assert read["message"] == f"said {HOSTILE}"
    assert read["route"] == HOSTILE
    assert read["level"] == "error"
    assert HOSTILE in read["exception"]


def test_AU_23_a_line_for_people_holds_nothing_a_terminal_obeys() -> None:
    line = LineFormatter("{levelname} {message}", style="{").format(record("said %s", HOSTILE))
    assert "\n" not in line
    assert "\x1b" not in line
    assert not {"\r", "\x00", "\x9b"} & set(line)
    # A traceback keeps its line breaks and no other control characters.
    found = LineFormatter("{message}", style="{").format(
        record("x", error=ValueError("\x1b[31mred"))
    )
    assert "\x1b" not in found
    assert len(found.splitlines()) == 2


def test_every_line_of_a_request_carries_its_id() -> None:
    token = request_id.set("01980000-0000-7000-8000-000000000000")
    try:
        assert json.loads(JsonFormatter().format(record("x")))["request_id"] == request_id.get()
        assert LineFormatter().format(record("x")).endswith(f"[{request_id.get()}]")
    finally:
        request_id.reset(token)
    assert "request_id" not in json.loads(JsonFormatter().format(record("x")))


@pytest.mark.parametrize("config", [LOGGING, logging_config(as_json=True, level="INFO")])
def test_DJ_28_every_handler_writes_such_lines(config: dict[str, Any]) -> None:
    line = config["formatters"]["line"]
    assert line.get("class", line.get("()")).startswith("agentauth.observability.logging_config.")
    assert {handler["formatter"] for handler in config["handlers"].values()} == {"line"}
    # Otherwise gunicorn's own handler would log the addresses of failed requests.
    assert config["loggers"]["gunicorn.error"]["handlers"] == ["stderr"]
