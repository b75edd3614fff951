"""One log line: when, how bad, who says it, what. A link that gives rights by itself is never written out."""

import logging
import re

# Claim and setup links: whoever reads the address may use it, and Django logs the address of every refusal.
_SECRET_PATH = re.compile(r"((?:/|%2F)(?:claim|setup)(?:/|%2F))[^/%\s?\"'&]+", re.IGNORECASE)


class LineFormatter(logging.Formatter):
    """The line with the secret of every claim and setup link cut out, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return _SECRET_PATH.sub(r"\1…", super().format(record))
