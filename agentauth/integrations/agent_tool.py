"""One call to a service provider as a tool that a model may use; knows no agent framework.

    add_event = AgentTool(
        client,
        name="add_event",
        description="Add an event to a calendar.",
        service="calendar",
        method="POST",
        path="/v1/calendars/{calendar}/events",
        parameters={"calendar": {"type": "string"}, "title": {"type": "string"}},
        needs=requires("write", "calendar/{calendar}", arguments=["title"]),
        asks_for=[Capability.write("calendar")],
    )

`langchain`, `autogen` and `openai_agents` make a tool of their framework from it. The model reads
one line of JSON. Links go to a person, not to the model, and tokens and proofs stay in the client.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NoReturn
from urllib.parse import quote, urlencode

from agentauth.protocol.behavioural_envelope import Envelope
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.encoding import MAX_BODY_BYTES, read_object
from agentauth.protocol.errors import (
    AgentAuthError,
    CooldownActiveError,
    EncodingError,
    InvalidRequestError,
    TemporarilyUnavailableError,
)
from agentauth.sdk.client import AgentAuthClient
from agentauth.sdk.decision_polling import Callback, tell
from agentauth.sdk.errors import NoGrantError
from agentauth.sdk.registry_answers import Confirmation, Grant
from agentauth.sdk.registry_http import new_key

from .incoming_request import Incoming
from .requirement import ConfigurationError, Requirement
from .tool_results import answer_line, failure_line, no_grant_line, result_line, timeout_line

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
# Their arguments are the query; those of the other methods are the JSON body.
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "DELETE"})
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}
# How long (s) a tool waits for a person before its result asks the model to call again later.
WAIT_SECONDS: Final = 600
# Operations that wait for the model to come back. Older ones are forgotten.
_MAX_PARKED: Final = 1_000


@dataclass(frozen=True, slots=True)
class PersonNeeded:
    """A person must decide at `url`: about a grant or one transaction, or be present there.

    Show it to the person, not to the model. The page asks for `code`, if there is one.
    """

    kind: Literal["grant", "confirmation", "presence"]
    url: str
    question: str
    code: str | None = None


class Parked(Exception):  # noqa: N818 — no error: the call goes on once the person has decided
    """Raised by `park`, out of `AgentTool.run`; the same call under the same key continues."""

    def __init__(self, needed: PersonNeeded) -> None:
        super().__init__(needed.question)
        self.needed = needed


def park(needed: PersonNeeded) -> NoReturn:
    """A callback for `AgentTool.run` that stops the call where it would wait for a person."""
    raise Parked(needed)


class AgentTool:
    """A tool: which request it makes of its arguments, and what that request needs.

    `parameters` are the JSON Schemas of the arguments by name; all are required but those named in
    `optional`. `path` is a path at the service provider's origin: `{id}` takes an argument as one
    segment, `{id:path}` as several. The other arguments are the JSON body, or the query of GET,
    HEAD and DELETE. `needs` is the act, as in `requires`: it chooses among the agent's grants.

    `asks_for` is requested within the limits `envelope`, with `reason`, if no grant covers it; by
    default nothing is requested. Register the agent with what all of its tools ask for. Raises
    ConfigurationError for a tool that cannot work.
    """

    def __init__(
        self,
        client: AgentAuthClient,
        *,
        name: str,
        description: str,
        service: str,
        method: str,
        path: str,
        needs: Requirement,
        parameters: Mapping[str, Mapping[str, object]],
        optional: Sequence[str] = (),
        asks_for: Sequence[Capability] = (),
        envelope: Envelope | Mapping[str, object] | None = None,
        reason: str = "",
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._client = client
        self.name = name
        self.description = description
        self.service = service
        self.asks_for = tuple(asks_for)
        self._method = method.upper()
        self._path = path
        self._needs = needs
        self._parameters = {each: dict(schema) for each, schema in parameters.items()}
        self._required = [each for each in parameters if each not in optional]
        self._envelope = envelope
        self._reason = reason
        self._wait_seconds = wait_seconds
        self._parked: dict[str, str] = {}
        self._check(optional)

    @property
    def schema(self) -> dict[str, object]:
        """The JSON Schema of the arguments, an object."""
        return {
            "type": "object",
            "properties": {name: dict(schema) for name, schema in self._parameters.items()},
            "required": list(self._required),
            "additionalProperties": False,
        }

    async def run(
        self,
        arguments: Mapping[str, object],
        show: Callback[PersonNeeded],
        *,
        key: str | None = None,
    ) -> str:
        """Make the call, and return its result for the model: one line of JSON.

        Its `status` is `answered`, `refused` (by the service provider), `denied` (by a person),
        `waiting_for_person` or `failed`. All that the service provider wrote is in `from_service`,
        so that no answer looks like a word of ours. `show` gets the link when a person must decide,
        and the call waits for the decision; with `park` it raises Parked instead. `key` names the
        operation: a repetition under the same key is done once. Without it, a call that was given
        up is continued by the next one with the same arguments.
        """
        try:
            same = operation_key(arguments)
        except AgentAuthError as error:
            return failure_line(error)
        operation = key or self._parked.pop(same, None) or new_key()
        shown: list[PersonNeeded] = []

        async def show_person(needed: PersonNeeded) -> None:
            shown.append(needed)
            await tell(show, needed)

        is_open = True
        try:
            async with asyncio.timeout(self._wait_seconds):
                result = await self._call(arguments, show_person, operation)
        except TimeoutError:
            return timeout_line(waits_for_person=bool(shown))
        except TemporarilyUnavailableError as error:
            return failure_line(error)
        except AgentAuthError as error:
            is_open = False
            return failure_line(error)
        else:
            is_open = False
            return result
        finally:
            if is_open and key is None:
                self._park(same, operation)

    async def run_json(
        self, text: str, show: Callback[PersonNeeded], *, key: str | None = None
    ) -> str:
        """`run` with arguments that are the text of a JSON object."""
        try:
            arguments = read_object(text.encode("utf-8", "surrogatepass"))
        except EncodingError as error:
            return failure_line(error)
        return await self.run(arguments, show, key=key)

    async def needs_person(self) -> PersonNeeded | None:
        """What a person must decide before the call can be made, if they have not decided yet.

        Requests `asks_for` if that was not done before. Other trouble is left to `run`.
        """
        try:
            await self._obtain(self._grant_shower(park))
        except Parked as parked:
            return parked.needed
        except AgentAuthError:
            return None
        return None

    # ---- inside

    def _grant_shower(self, show: Callback[PersonNeeded]) -> Callback[Grant]:
        async def show_grant(grant: Grant) -> None:
            if grant.approval_url is not None:
                question = f"This agent asks for access to {self.service}."
                needed = PersonNeeded("grant", grant.approval_url, question, grant.claim_code)
                await tell(show, needed)

        return show_grant

    def _check(self, optional: Sequence[str]) -> None:
        where = f"the tool {self.name!r}"
        if _NAME.fullmatch(self.name) is None:
            raise ConfigurationError(
                f"{where}: a name has 1 to 64 letters, digits, hyphens and underscores."
            )
        if self._method not in METHODS:
            raise ConfigurationError(f"{where}: the method must be one of {', '.join(METHODS)}.")
        if not self._path.startswith("/") or "?" in self._path or "#" in self._path:
            raise ConfigurationError(f"{where}: the path must start with / and have no query.")
        if unknown := sorted(set(optional) - set(self._parameters)):
            raise ConfigurationError(f"{where}: {unknown[0]!r} in `optional` is no parameter.")
        filled = {name for name, _ in _PLACEHOLDER.findall(self._path)} | self._needs.placeholders
        if missing := sorted(filled - set(self._required)):
            raise ConfigurationError(
                f"{where}: {{{missing[0]}}} must be one of its required parameters."
            )

    async def _call(
        self, arguments: Mapping[str, object], show: Callback[PersonNeeded], key: str
    ) -> str:
        self._check_arguments(arguments)
        action, url, body = self._request(arguments)

        show_grant = self._grant_shower(show)

        async def show_confirmation(pending: Confirmation) -> None:
            await tell(show, self._confirmation(pending))

        try:
            await self._obtain(show_grant)
            response = await self._client.call(
                self.service,
                self._method,
                url,
                action=action,
                json=body,
                idempotency_key=key,
                on_pending=show_grant,
                on_step_up=show_confirmation,
            )
        except (NoGrantError, CooldownActiveError) as error:
            return no_grant_line(error)
        return answer_line(response)

    async def _obtain(self, show_grant: Callback[Grant]) -> None:
        """See that grants cover `asks_for`. Raises NoGrantError if a person said no."""
        # Twice: once it is decided, the second look says whether that was a yes.
        for _ in range(2 if self.asks_for else 0):
            grant = await self._client.ensure_grant(
                self.service, self.asks_for, envelope=self._envelope, reason=self._reason
            )
            if grant.status == "approved":
                return
            await self._client.wait_for_decision(grant, on_pending=show_grant)

    def _confirmation(self, pending: Confirmation) -> PersonNeeded:
        url = pending.approval_url or f"{self._client.registry_url}/"
        if not pending.confirmation_id:
            question = f"A call to {self.service} needs you to be present at the registry."
            return PersonNeeded("presence", url, question)
        question = f"This agent asks you to confirm one transaction at {self.service}."
        return PersonNeeded("confirmation", url, question)

    def _check_arguments(self, arguments: Mapping[str, object]) -> None:
        for name in self._required:
            if name not in arguments:
                raise InvalidRequestError(f"{name}: is missing.")
        for name, value in arguments.items():
            if name not in self._parameters:
                raise InvalidRequestError(f"{name[:64]}: this tool has no such argument.")
            schema = self._parameters[name]
            kinds = schema.get("type")
            allowed = [kinds] if isinstance(kinds, str) else kinds
            if isinstance(allowed, list) and not any(_is_of(value, each) for each in allowed):
                raise InvalidRequestError(f"{name}: must be of type {' or '.join(allowed)}.")
            listed = schema.get("enum")
            if isinstance(listed, list) and value not in listed:
                raise InvalidRequestError(f"{name}: must be one of {listed}.")

    def _request(self, arguments: Mapping[str, object]) -> tuple[Action, str, object]:
        """The act, the URL and the body. Raises InvalidRequestError."""
        content = _canonical(arguments)
        if len(content) > MAX_BODY_BYTES:
            raise InvalidRequestError(
                f"The arguments must be at most {MAX_BODY_BYTES:,} bytes of JSON."
            )
        in_path = {name for name, _ in _PLACEHOLDER.findall(self._path)}
        path = _PLACEHOLDER.sub(lambda found: _segment(found, arguments), self._path)
        rest = {name: value for name, value in arguments.items() if name not in in_path}
        incoming = Incoming(
            self._method,
            path,
            [("Content-Type", "application/json")],
            parameters=dict(arguments),
            read_body=lambda: content,
        )
        action = self._needs.action(incoming)
        if self._method not in _WITHOUT_BODY:
            return action, path, rest
        query = urlencode({name: _in_query(name, value) for name, value in rest.items()})
        return action, f"{path}?{query}" if query else path, None

    def _park(self, same: str, operation: str) -> None:
        self._parked[same] = operation
        while len(self._parked) > _MAX_PARKED:
            del self._parked[next(iter(self._parked))]


def operation_key(*parts: object) -> str:
    """The key of an operation that `parts`, which are JSON, name. Raises InvalidRequestError."""
    return hashlib.sha256(_canonical(list(parts))).hexdigest()


def declined() -> str:
    """The result for the model if the person does not want to decide now."""
    return result_line("denied", "The person did not open the link. Ask them before you try again.")


def _canonical(value: object) -> bytes:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise InvalidRequestError(
            "The arguments must be JSON without NaN and infinities."
        ) from None


def _is_of(value: object, kind: object) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(kind, str) and isinstance(value, _TYPES.get(kind, (object,)))


def _segment(found: re.Match[str], arguments: Mapping[str, object]) -> str:
    name, value = found[1], arguments[found[1]]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidRequestError(f"{name}: must be a text or an integer.")
    text = str(value)
    parts = text.split("/") if found[2] else [text]
    # Clients and servers resolve these, so the request would be another one.
    if any(part in {"", ".", ".."} for part in parts):
        raise InvalidRequestError(f"{name}: must not be empty, or have a segment `.` or `..`.")
    return quote(text, safe="/" if found[2] else "", errors="replace")


def _in_query(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise InvalidRequestError(f"{name}: must be a text, a number or a boolean.")
    return str(value)
