"""Log lines: text for people, or one JSON object each. No line holds a link that grants rights."""

import json
import logging
import re
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

# The request during which a line is written; empty outside one.
request_id: ContextVar[str] = ContextVar("request_id", default="")
# The trace of that request, or of a job's run; empty without traces (tracing.py).
trace_id: ContextVar[str] = ContextVar("trace_id", default="")

# Claim, setup and recovery links: anyone who reads the URL may use it, and Django logs the URL of
# every refusal. Their patterns, `/setup/<str:code>/`, hold no secret.
_SECRET_PATH = re.compile(
    r"((?:/|%2F)(?:claim|setup|recover)(?:/|%2F))[^/%\s?\"'&<]+", re.IGNORECASE
)
# Control characters that a terminal or log reader would act on, except a traceback's newlines.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(10), *range(11, 32), *range(127, 160))}


def without_secrets(value: object) -> object:
    """A text without the secret of each claim, setup or recovery link; other values unchanged."""
    return _SECRET_PATH.sub(r"\1…", value) if isinstance(value, str) else value


class LineFormatter(logging.Formatter):
    """A line for people: no secret links, no control characters; only tracebacks add lines."""

    def format(self, record: logging.LogRecord) -> str:
        return str(without_secrets(super().format(record))).translate(_CONTROL)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 — logging's name
        # Escape the message's own newlines here, before a traceback is appended.
        line = super().formatMessage(record).replace("\n", "\\n")
        return f"{line} [{own}]" if (own := request_id.get() or trace_id.get()) else line


class JsonFormatter(logging.Formatter):
    """One JSON object in ASCII, on one line: tracebacks, newlines and escapes are text in it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        if traced := trace_id.get():
            line["trace_id"] = traced
        # Our own code passes these as `extra={"members": {…}}`.
        line |= getattr(record, "members", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Before quoting: a cut afterwards could remove a backslash that the line needs.
        return json.dumps(
            {name: without_secrets(value) for name, value in line.items()}, default=str
        )


def logging_config(*, as_json: bool, level: str) -> dict[str, Any]:
    """Django's LOGGING. In JSON, or if `level` asks for it, one line per request and per start."""
    line = {"()": "agentauth.observability.logging_config.JsonFormatter"}
    if not as_json:
        line = {
            "class": "agentauth.observability.logging_config.LineFormatter",
            "format": "{asctime} {levelname} {name} {message}",
            "style": "{",
        }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": line},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {
            # Refusals are audit events: Django need not log each.
            **{name: {"level": "CRITICAL"} for name in ("django.request", "django.security")},
            # An unreachable collector is one line a batch, not one for each retry.
            "opentelemetry.exporter": {"level": "ERROR"},
            # gunicorn's own lines hold URLs too, so our formatter must remove their secrets.
            "gunicorn.error": {"handlers": ["stderr"], "propagate": False},
            **(
                {f"agentauth.{name}": {"level": "INFO"} for name in ("requests", "startup")}
                if as_json
                else {}
            ),
        },
        "root": {"handlers": ["stderr"], "level": level},
    }
