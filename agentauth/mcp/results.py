"""What a tool answers: a sentence, the same as JSON, and the link if a person must act."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import httpx

from agentauth.protocol.encoding import b64u_decode, read_json, read_object
from agentauth.protocol.errors import AgentAuthError, EncodingError
from agentauth.protocol.untrusted_text import printable

# Bytes of a service provider's answer that are read; a longer one is refused.
MAX_ANSWER_BYTES: Final = 1_048_576
# Characters of one text of a service provider's answer that the client sees.
MAX_SHOWN: Final = 65_536
# Characters of a text of a service provider or the registry within a sentence of ours.
MAX_QUOTED: Final = 300
# A row of segments, each read once: the time grows with the length alone.
_JWS: Final = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]{8,}+){2,}+")
_SECRET_TYPES: Final = frozenset({"at+jwt", "dpop+jwt"})
_MAX_HEADER: Final = 8_192
# An ASCII character as JSON may write it.
_ESCAPE: Final = re.compile(r"\\u00([2-7][0-9A-Fa-f])")


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
        code = f" The page asks for this code: {shortened(self.code)}." if self.code else ""
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
    return Outcome(shortened(error.description), body, is_error=True)


def mistake(sentence: str) -> Outcome:
    """A call with arguments that cannot be used."""
    return Outcome(sentence, {"status": "failed", "error": "invalid_request"}, is_error=True)


def shortened(text: str) -> str:
    """What others wrote, for a sentence of ours: one line, so that it forges no line of JSON."""
    shown = printable(whole(text)[: MAX_QUOTED + 1])
    return shown if len(shown) <= MAX_QUOTED else f"{shown[: MAX_QUOTED - 1]}…"


def whole(text: str) -> str:
    """`text` without lone surrogates, which no transport can encode."""
    return text.encode(errors="replace").decode()


def without_secrets(text: str) -> str:
    """`text` without access tokens and proofs: a service provider may echo a request's headers."""
    # Also in what is no strict JSON, a reader may undo the escapes.
    plain = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    filtered = _JWS.sub(lambda found: "[removed]" if _is_secret(found[0]) else found[0], plain)
    return text if filtered == plain else filtered


def _is_secret(row: str) -> bool:
    return any(_is_header(each) for each in row.split("."))


def _is_header(header: str) -> bool:
    if len(header) > _MAX_HEADER:
        return False
    try:
        return read_object(b64u_decode(header)).get("typ") in _SECRET_TYPES
    except AgentAuthError:
        return False


def in_each_text(value: object, change: Callable[[str], str]) -> object:
    """The JSON `value` with each text in it changed, names of members too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): in_each_text(each, change) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [in_each_text(each, change) for each in value]
    return value


def as_json(body: Mapping[str, object]) -> str:
    """The body as one line of JSON; what is not displayed as itself is escaped."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def shown_content(response: httpx.Response) -> tuple[object, bool]:
    """The answer's JSON or text as the client sees it, and whether it was cut."""
    if not response.content:
        return None, False
    # Not `response.text`: there the service chooses the decoder, among them some that fail and some
    # that make lone surrogates.
    text = response.content.decode(errors="replace")
    if len(text) > MAX_SHOWN:
        return without_secrets(text)[:MAX_SHOWN], True
    try:
        # Strict: what is deep, or not JSON for every reader, is shown as text.
        read = read_json(text, max_bytes=4 * MAX_SHOWN)
    except EncodingError:
        return without_secrets(text), False
    # After the escapes in it are read.
    return in_each_text(read, without_secrets), False
