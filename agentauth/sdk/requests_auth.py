"""Sign the requests of the package requests: `requests.get(url, auth=RequestsAuth(client, "api"))`.

Needs the extra `requests`. The credentials are removed from a request as soon as it is answered, so
that a redirect never carries them to another address.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import httpx

try:
    import requests
    from requests.auth import AuthBase
except ImportError as missing:
    raise ImportError(
        "agentauth.sdk.requests_auth needs the package requests: "
        "pip install 'agentauth-sdk[requests]'"
    ) from missing

from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError

from .argument_checks import check_action, check_capabilities
from .decision_polling import Callback
from .errors import AudienceError
from .httpx_auth import CREDENTIALS, KEY, MAX_REDIRECTS, is_short_refusal
from .registry_answers import Confirmation, Grant
from .service_calls import Answer, Call, Conversation
from .sync_client import SyncAgentAuthClient

_PROOF: Final = CREDENTIALS[1]


class RequestsAuth(AuthBase):
    """Signs each attempt of a request to one service provider (id or slug), as `AgentAuth` does.

    A proof is sent once. If an adapter with `max_retries` or a second `Session.send` of a prepared
    request would send it again, InvalidRequestError is raised instead.
    """

    def __init__(
        self,
        client: SyncAgentAuthClient,
        service: str,
        *,
        action: Action | Callable[[requests.PreparedRequest], Action | None] | None = None,
        ask_for: Sequence[Capability] = (),
        on_pending: Callback[Grant] | None = None,
        on_step_up: Callback[Confirmation] | None = None,
    ) -> None:
        if not isinstance(client, SyncAgentAuthClient):
            raise InvalidRequestError("client: requests needs a SyncAgentAuthClient.")
        if not callable(action):
            check_action(action)
        self._client = client
        self._service = service
        self._action = action
        self._ask_for = check_capabilities(ask_for) if ask_for else ()
        self._on_pending = on_pending
        self._on_step_up = on_step_up

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """What requests calls before it sends a request."""
        attempts = _Attempts(self._client, self._conversation)
        attempts.sign(request)
        request.register_hook("response", attempts.follow)  # type: ignore[no-untyped-call]
        return request

    def _conversation(self, request: requests.PreparedRequest) -> Conversation:
        action = self._action(request) if callable(self._action) else self._action
        check_action(action)
        key = request.headers.get(KEY)
        return self._client.conversation(
            Call(
                self._service,
                request.method or "GET",
                request.url or "",
                action,
                key.decode("latin-1") if isinstance(key, bytes) else key,
                self._ask_for,
                self._on_pending,
                self._on_step_up,
                _is_repeatable(request),
            )
        )


class OneProof(str):
    """A proof that can be sent once: http.client encodes each header value when it sends it."""

    __slots__ = ("_is_sent",)
    _is_sent: bool

    def __new__(cls, proof: str) -> Self:
        """A proof that was not sent yet."""
        made = super().__new__(cls, proof)
        made._is_sent = False
        return made

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """The bytes to send. Raises InvalidRequestError the second time."""
        # No OSError: urllib3 would take it for a lost connection, and try again.
        if self._is_sent:
            raise InvalidRequestError(
                "This proof was sent already. RequestsAuth retries by itself: leave max_retries of "
                "the adapter at 0, and prepare a new request instead of sending one twice."
            )
        self._is_sent = True
        return super().encode(encoding, errors)


class _Attempts:
    """The attempts of one request, through the redirects that requests follows."""

    def __init__(
        self,
        client: SyncAgentAuthClient,
        begin: Callable[[requests.PreparedRequest], Conversation],
    ) -> None:
        self._client = client
        self._begin = begin
        self._conversation: Conversation | None = None
        self._redirects = 0

    def sign(self, request: requests.PreparedRequest) -> None:
        if self._conversation is None:
            self._conversation = self._begin(request)
        signed = self._client.run(self._conversation.headers())
        request.headers.update(signed | {_PROOF: OneProof(signed[_PROOF])})

    def follow(self, response: requests.Response, **sending: Any) -> requests.Response:
        """What requests calls with each answer; returns the one to go on with."""
        while True:
            request = response.request
            is_signed = _PROOF in request.headers
            for name in CREDENTIALS:
                request.headers.pop(name, None)
            if not is_signed:
                self._redirects += 1
                if response.status_code != httpx.codes.UNAUTHORIZED:
                    return response
                if self._redirects > MAX_REDIRECTS or not _is_repeatable(request):
                    return response
                self._end()
            elif not self._is_to_be_repeated(response):
                return response
            repeated = request.copy()
            try:
                self.sign(repeated)
            except AudienceError:
                # A redirect led to another address, which gets no credentials.
                return response
            except AgentAuthError:
                # Without a new token, the service provider's last answer is final.
                if self._conversation is not None and self._conversation.is_answered:
                    return response
                raise
            # Unread, unless it was a short refusal: the body could be endless.
            response.close()
            former, response = response, response.connection.send(repeated, **sending)
            response.history = [*former.history, former]
            response.request = repeated

    def _is_to_be_repeated(self, response: requests.Response) -> bool:
        assert self._conversation is not None
        headers = httpx.Headers(dict(response.headers))
        content = response.content if is_short_refusal(response.status_code, headers) else b""
        answer = Answer(response.status_code, headers, content)
        return self._client.run(self._conversation.is_to_be_repeated(answer))

    def _end(self) -> None:
        if self._conversation is not None:
            self._conversation.cancel()
        self._conversation = None


def _is_repeatable(request: requests.PreparedRequest) -> bool:
    return request.body is None or isinstance(request.body, str | bytes)
