"""Sign the requests of an httpx client: `httpx.AsyncClient(auth=AgentAuth(client, "my-api"))`.

Each attempt has a new proof, also those of httpx for a redirect: the credentials of one attempt are
not among the headers that httpx copies to the next, so no other address ever gets them.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from typing import Any, Final

import httpx

from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError

from .argument_checks import check_action, check_capabilities
from .client import AgentAuthClient
from .decision_polling import Callback
from .errors import AudienceError
from .registry_answers import Confirmation, Grant
from .service_calls import MAX_REFUSAL_BYTES, Answer, Call, Conversation
from .sync_client import SyncAgentAuthClient

CREDENTIALS: Final = ("Authorization", "DPoP")
KEY: Final = "Idempotency-Key"
# Redirects within the audience that are signed again.
MAX_REDIRECTS: Final = 5
_REFUSALS: Final = frozenset({401, 403, 429})

Step = Coroutine[Any, Any, Any] | httpx.Request


class AgentAuth(httpx.Auth):
    """Signs each attempt of a request to one service provider (id or slug).

    `client` is an AgentAuthClient for `httpx.AsyncClient`, a SyncAgentAuthClient for
    `httpx.Client`. `action` says what the request does, or is a function of the request that does.
    `ask_for`, `on_pending` and `on_step_up` are those of `AgentAuthClient.call`, and so are pacing,
    nonces and fresh tokens. 503 and 429 with a short `Retry-After` are retried; lost answers are
    not: httpx does not show them. A body that is not bytes (a generator, files) is sent once.
    Requests outside the audience raise AudienceError and are not sent. A redirect that httpx
    follows goes out without credentials; if that leads to a 401 within the audience, the request
    is signed again.
    """

    def __init__(
        self,
        client: AgentAuthClient | SyncAgentAuthClient,
        service: str,
        *,
        action: Action | Callable[[httpx.Request], Action | None] | None = None,
        ask_for: Sequence[Capability] = (),
        on_pending: Callback[Grant] | None = None,
        on_step_up: Callback[Confirmation] | None = None,
    ) -> None:
        if not callable(action):
            check_action(action)
        self._client = client
        self._service = service
        self._action = action
        self._ask_for = check_capabilities(ask_for) if ask_for else ()
        self._on_pending = on_pending
        self._on_step_up = on_step_up

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """What httpx.AsyncClient asks for."""
        if not isinstance(self._client, AgentAuthClient):
            raise InvalidRequestError(
                "client: httpx.AsyncClient needs AgentAuth(AgentAuthClient(…), …)."
            )
        steps = self._steps(request)
        step = next(steps, None)
        response: httpx.Response | None = None
        try:
            while step is not None:
                if isinstance(step, httpx.Request):
                    if response is not None and not response.is_closed:
                        assert isinstance(response.stream, httpx.AsyncByteStream)
                        await response.stream.aclose()
                        response.stream = httpx.ByteStream(b"")
                    response = yield step
                    if is_short_refusal(response.status_code, response.headers):
                        await response.aread()
                    step = _following(steps, response)
                else:
                    try:
                        done = await step
                    except AgentAuthError as error:
                        step = _failing(steps, error)
                    else:
                        step = _following(steps, done)
        finally:
            steps.close()

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """What httpx.Client asks for."""
        if not isinstance(self._client, SyncAgentAuthClient):
            raise InvalidRequestError(
                "client: httpx.Client needs AgentAuth(SyncAgentAuthClient(…), …)."
            )
        steps = self._steps(request)
        step = next(steps, None)
        response: httpx.Response | None = None
        try:
            while step is not None:
                if isinstance(step, httpx.Request):
                    if response is not None and not response.is_closed:
                        # httpx reads the body of an answer that is not the last: it could be
                        # endless.
                        assert isinstance(response.stream, httpx.SyncByteStream)
                        response.stream.close()
                        response.stream = httpx.ByteStream(b"")
                    response = yield step
                    if is_short_refusal(response.status_code, response.headers):
                        response.read()
                    step = _following(steps, response)
                else:
                    try:
                        done = self._client.run(step)
                    except AgentAuthError as error:
                        step = _failing(steps, error)
                    else:
                        step = _following(steps, done)
        finally:
            steps.close()

    def _steps(  # noqa: C901 — one loop that reads from top to bottom
        self, request: httpx.Request
    ) -> Generator[Step, Any, None]:
        """The requests to send, and the coroutines to run in between."""
        conversation: Conversation | None = None
        has_answer = False
        redirects = 0
        try:
            while True:
                if conversation is None:
                    conversation = self._conversation(request)
                try:
                    headers: dict[str, str] = yield conversation.headers()
                except AudienceError:
                    # A redirect led to another address, which gets no credentials.
                    if redirects:
                        return
                    raise
                except AgentAuthError:
                    # Without a new token, the service provider's last answer is final.
                    if has_answer and conversation.is_answered:
                        return
                    raise
                request.headers = OneUse(request.headers, headers)
                response: httpx.Response = yield request
                has_answer = True
                if response.request is not request:
                    # httpx followed a redirect, without credentials.
                    redirects += 1
                    conversation.cancel()
                    request, conversation = response.request, None
                    if not self._is_to_be_signed(response) or redirects > MAX_REDIRECTS:
                        return
                    continue
                again: bool = yield conversation.is_to_be_repeated(_answer_of(response))
                if not again:
                    return
        finally:
            if conversation is not None:
                conversation.cancel()

    def _conversation(self, request: httpx.Request) -> Conversation:
        action = self._action(request) if callable(self._action) else self._action
        check_action(action)
        return self._client.conversation(
            Call(
                self._service,
                request.method,
                str(request.url),
                action,
                request.headers.get(KEY),
                self._ask_for,
                self._on_pending,
                self._on_step_up,
                isinstance(request.stream, httpx.ByteStream),
            )
        )

    def _is_to_be_signed(self, response: httpx.Response) -> bool:
        return response.status_code == httpx.codes.UNAUTHORIZED and isinstance(
            response.request.stream, httpx.ByteStream
        )


class OneUse(httpx.Headers):
    """Headers with credentials that are sent, but not copied to another request."""

    def __init__(self, headers: httpx.Headers, signed: dict[str, str]) -> None:
        super().__init__(headers)
        self._credentials = httpx.Headers()
        for name in CREDENTIALS:
            self.pop(name, None)
        if KEY in signed:
            # Not a credential: the key of the operation, for a redirect too.
            self[KEY] = signed[KEY]
        self._credentials = httpx.Headers({name: signed[name] for name in CREDENTIALS})

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        """What is sent."""
        return [*super().raw, *self._credentials.raw]

    def __getitem__(self, key: str) -> str:
        return self._credentials[key] if key in self._credentials else super().__getitem__(key)

    def __contains__(self, key: Any) -> bool:
        return key in self._credentials or super().__contains__(key)


def is_short_refusal(status: int, headers: httpx.Headers) -> bool:
    """May the answer say what to do next, in a body short enough to be read at once?"""
    length = headers.get("Content-Length", "")
    return (
        status in _REFUSALS
        and length.isascii()
        and length.isdigit()
        and len(length) <= len(str(MAX_REFUSAL_BYTES))
        and int(length) <= MAX_REFUSAL_BYTES
        and headers.get("Content-Encoding", "identity").strip().lower() == "identity"
    )


def _answer_of(response: httpx.Response) -> Answer:
    is_read = is_short_refusal(response.status_code, response.headers)
    return Answer(response.status_code, response.headers, response.content if is_read else b"")


def _following(steps: Generator[Step, Any, None], value: object) -> Step | None:
    try:
        return steps.send(value)
    except StopIteration:
        return None


def _failing(steps: Generator[Step, Any, None], error: AgentAuthError) -> Step | None:
    try:
        return steps.throw(error)
    except StopIteration:
        return None
