"""What a log line is: for people in development, one JSON object in production; no line holds a link that gives rights."""

import json
import logging
import re
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

# The request during which a line is written; empty outside one.
request_id: ContextVar[str] = ContextVar("request_id", default="")

# Claim, setup and recovery links: whoever reads the address may use it, and Django logs the address of every refusal. Their patterns,
# `/setup/<str:code>/`, say nothing.
_SECRET_PATH = re.compile(r"((?:/|%2F)(?:claim|setup|recover)(?:/|%2F))[^/%\s?\"'&<]+", re.IGNORECASE)
# Whatever a terminal or a reader of lines would act on, but the newlines of a traceback.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(10), *range(11, 32), *range(127, 160))}


def without_secrets(value: object) -> object:
    """A text without the secret of every claim, setup and recovery link in it; anything else as it is."""
    return _SECRET_PATH.sub(r"\1…", value) if isinstance(value, str) else value


class LineFormatter(logging.Formatter):
    """A line for people: no secret of a link, no control character; only a traceback takes further lines."""

    def format(self, record: logging.LogRecord) -> str:
        return str(without_secrets(super().format(record))).translate(_CONTROL)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 — logging's name
        # Here the message stands alone, before a traceback is put below it.
        line = super().formatMessage(record).replace("\n", "\\n")
        return f"{line} [{current}]" if (current := request_id.get()) else line


class JsonFormatter(logging.Formatter):
    """One JSON object in ASCII, on one line whatever it holds: tracebacks, newlines and escapes are text in it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        # What our own code hands over as `extra={"members": {…}}`.
        line |= getattr(record, "members", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Before the quoting: a cut after it could take a backslash that the line still needs.
        return json.dumps({name: without_secrets(value) for name, value in line.items()}, default=str)


def logging_config(*, as_json: bool, level: str) -> dict[str, Any]:
    """Django's LOGGING. Lines of single requests and of each start come in JSON, or where `level` asks for them."""
    line = {"()": "agentauth.log_lines.JsonFormatter"}
    if not as_json:
        line = {
            "class": "agentauth.log_lines.LineFormatter",
            "format": "{asctime} {levelname} {name} {message}",
            "style": "{",
        }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": line},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {
            # Refusals are audit events: no line of Django's for each.
            **{name: {"level": "CRITICAL"} for name in ("django.request", "django.security")},
            # The server's own lines name addresses too.
            "gunicorn.error": {"handlers": ["stderr"], "propagate": False},
            **(
                {f"agentauth.{name}": {"level": "INFO"} for name in ("requests", "startup")}
                if as_json
                else {}
            ),
        },
        "root": {"handlers": ["stderr"], "level": level},
    }
