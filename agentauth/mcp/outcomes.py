"""Outcomes of a tool call: a sentence, the same as JSON, and the link if a person must act."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.untrusted_text import printable

# Characters of a text of a service provider or the registry within a sentence of ours.
MAX_QUOTED: Final = 300


@dataclass(frozen=True, slots=True)
class Waiting:
    """A person must decide at `url`: about a grant, or one transaction. `code` is the claim code.

    `id` is None if there is no such row: the person's presence is missing, or a confirmation that
    the answer does not name.
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


def as_json(body: Mapping[str, object]) -> str:
    """The body as one line of JSON; what is not displayed as itself is escaped."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
