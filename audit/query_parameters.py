"""Strict parsing of query parameters of audit's API."""

import re
import uuid
from collections.abc import Mapping

from rest_framework.request import Request

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.json_fields import quote_safely

# Sizes and indices are signed 64-bit integers in the database and in checkpoints.
MAX_NUMBER = 2**63 - 1
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


def query(request: Request, *names: str) -> dict[str, str]:
    """The query parameters. Raises InvalidRequestError unless all are in `names`, each once."""
    given = request.query_params
    for name, values in given.lists():
        if name not in names or len(values) != 1:
            taken = f"only {', '.join(names)}, each once" if names else "none"
            raise InvalidRequestError(
                f"Query parameter {quote_safely(name)}: {taken} may stand here."
            )
    return {name: str(given[name]) for name in given}


def read_required(given: Mapping[str, str], name: str) -> str:
    """The parameter's text. Raises InvalidRequestError if it is missing."""
    if name not in given:
        raise InvalidRequestError(f"The query parameter `{name}` is missing.")
    return given[name]


def read_id(text: str) -> uuid.UUID:
    """A UUID in canonical lower-case form. Raises InvalidRequestError."""
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        parsed = None
    if parsed is None or str(parsed) != text:
        raise InvalidRequestError("An id must be a lower-case UUID.")
    return parsed


def read_number(text: str, name: str) -> int:
    """ASCII decimal without leading zeros, 0 to MAX_NUMBER. Raises InvalidRequestError."""
    if not _DECIMAL.fullmatch(text) or (number := int(text)) > MAX_NUMBER:
        raise InvalidRequestError(
            f"`{name}` must be a decimal number without leading zeros, below 2^63."
        )
    return number
