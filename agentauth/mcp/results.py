"""What a tool answers: a sentence, the same as JSON, and the link if a person must act."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from agentauth.protocol.errors import AgentAuthError


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


def as_json(body: Mapping[str, object]) -> str:
    """The body as one line of JSON."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
