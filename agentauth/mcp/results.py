"""What a tool answers: a sentence, the same as JSON, and the link if a person must act."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import httpx

from agentauth.protocol.encoding import b64u_decode, read_json, read_object
from agentauth.protocol.errors import AgentAuthError, EncodingError

# Characters of one text of a service provider's answer that the client sees.
MAX_SHOWN: Final = 65_536
_JWS: Final = re.compile(r"[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}")
_SECRET_TYPES: Final = frozenset({"at+jwt", "dpop+jwt"})
_MAX_HEADER: Final = 8_192


@dataclass(frozen=True, slots=True)
class Waiting:
    """A person must decide at `url`: about a grant, or one transaction. `code` is the claim code.

    `id` is None if only the person's presence is missing.
    """

    kind: Literal["grant", "confirmation", "presence"]
    id: str | None
    url: str
    question: str
    code: str | None = None

    @property
    def message(self) -> str:
        """What the person reads before opening the link."""
        code = f" The page asks for this code: {self.code}." if self.code else ""
        return f"{self.question} Open the link to decide.{code}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer of one tool. `body` is JSON; its `status` says in one word what happened."""

    text: str
    body: Mapping[str, object] = field(default_factory=dict)
    is_error: bool = False
    waiting: Waiting | None = None


def failure(error: AgentAuthError) -> Outcome:
    """An error of the SDK or the registry, with its stable code."""
    body: dict[str, object] = {"status": "failed", "error": error.code}
    if error.reason:
        body["reason"] = error.reason
    for name in ("retry_after", "violations", "deny_reason"):
        if (value := error.fields.get(name)) is not None:
            body[name] = value
    return Outcome(error.description, body, is_error=True)


def mistake(sentence: str) -> Outcome:
    """A call with arguments that cannot be used."""
    return Outcome(sentence, {"status": "failed", "error": "invalid_request"}, is_error=True)


def without_secrets(text: str) -> str:
    """`text` without access tokens and proofs: a service provider may echo a request's headers."""
    return _JWS.sub(lambda found: "[removed]" if _is_secret(found[0]) else found[0], text)


def _is_secret(compact: str) -> bool:
    header = compact.split(".", 1)[0]
    if len(header) > _MAX_HEADER:
        return False
    try:
        return read_object(b64u_decode(header)).get("typ") in _SECRET_TYPES
    except AgentAuthError:
        return False


def as_json(body: Mapping[str, object]) -> str:
    """The body as one line of JSON."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def shown_content(response: httpx.Response) -> tuple[object, bool]:
    """The answer's JSON or text as the client sees it, and whether it was cut."""
    if not response.content:
        return None, False
    text = without_secrets(response.text)
    if len(text) > MAX_SHOWN:
        return text[:MAX_SHOWN], True
    try:
        # Strict: what is deep, or not JSON for every reader, is shown as text.
        return read_json(text.encode(), max_bytes=4 * MAX_SHOWN), False
    except (EncodingError, UnicodeEncodeError):
        return text, False
