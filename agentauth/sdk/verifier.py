"""The service provider's client: asks the registry whether one request may pass. Synchronous; knows no framework."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

import httpx

from agentauth.protocol.capability import Action
from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import (
    EncodingError,
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    InvalidRequestError,
    TemporarilyUnavailableError,
)

from .addresses import check_registry_url, is_loopback
from .counting import Uncounted
from .errors import RefusedError, RegistryError, error_from
from .wire import new_key

TIMEOUT_SECONDS: Final = 5.0
# Each may take the whole timeout, and an agent waits for both.
_TRIES: Final = 2
_MAX_ANSWER_BYTES: Final = 1_048_576
# The caller's own mistakes, which the agent or the service provider can mend; everything else that is not an answer
# is a fault of ours and must look like one.
_CALLERS_MISTAKES: Final = (InvalidRequestError, IdempotencyMismatchError)


@dataclass(frozen=True, slots=True)
class Allowed:
    """Verify said yes to exactly this request. `answer` is the whole answer (protocol section 8).

    With `repeated` the agent's operation was allowed before: do not act again, answer with the stored result.
    """

    decision_id: str
    agent_id: str
    agent_name: str
    subject: str
    grant_id: str
    repeated: bool = False
    nonce: str | None = None
    answer: Mapping[str, object] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, body: Mapping[str, object]) -> Self:
        """Read an answer whose `valid` is true."""
        agent = body.get("agent")
        known = agent if isinstance(agent, Mapping) else {}
        nonce = body.get("nonce")
        return cls(
            decision_id=str(body.get("decision_id", "")),
            agent_id=str(known.get("id", "")),
            agent_name=str(known.get("name", "")),
            subject=str(body.get("subject", "")),
            grant_id=str(body.get("grant_id", "")),
            # Anything but a plain false counts as repeated: acting twice is worse than not acting.
            repeated=body.get("repeated", False) is not False,
            nonce=nonce if isinstance(nonce, str) else None,
            answer=body,
        )


class VerifierClient:
    """Asks one registry as one service provider. Safe to share between threads; `close` frees its connections."""

    def __init__(
        self,
        registry_url: str,
        client_id: str,
        client_secret: str,
        *,
        timeout: float = TIMEOUT_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.registry_url = check_registry_url(registry_url)
        self._auth = httpx.BasicAuth(client_id, client_secret)
        self._timeout = timeout
        self._transport = transport
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()
        self._uncounted = Uncounted()

    def verify(
        self,
        *,
        token: str,
        proof: str,
        method: str,
        url: str,
        action: Action | None = None,
        idempotency_key: str | None = None,
        dry_run: bool = False,
    ) -> Allowed:
        """May the holder of `token`, who made `proof` for `method` and `url`, do `action` now?

        `url` is the service provider's own address for the request, never taken from its Host header.
        `idempotency_key` is the agent's own, from its header of that name. Without `action` only token, proof,
        windows and presence are judged. Raises RefusedError for a no, InvalidRequestError and
        IdempotencyMismatchError for a question that cannot be answered, TemporarilyUnavailableError for everything
        that is not an answer: never treat that one as a yes.
        """
        body: dict[str, object] = {"token": token, "proof": proof, "method": method, "url": url}
        if action is not None:
            body["action"] = action.to_json()
        if idempotency_key is not None:
            body["idempotency_key"] = idempotency_key
        if dry_run:
            body["dry_run"] = True
        # Minted for this one request of an agent, and unlike the agent's own key (protocol section 8): under it the
        # registry answers the second time as it did the first, though the proof is spent by then.
        name = None if self._uncounted.holds(token, action, idempotency_key) else new_key()
        answer = self._ask(json.dumps(body).encode(), name)
        # Both are asked for by identity: 1, "true" or a missing member is no decision.
        if answer.get("valid") is True:
            self._uncounted.learn(token, answer)
            return Allowed.of(answer)
        if answer.get("valid") is False:
            reason = answer.get("reason")
            error = str(answer.get("error", ""))
            fields = {name: answer[name] for name in answer.keys() - {"valid", "error", "reason"}}
            raise RefusedError(error, reason if isinstance(reason, str) else None, fields)
        raise _no_answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _open(self) -> httpx.Client:
        # Made at the first call, not at import: a server that forks afterwards must not share sockets.
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(
                    base_url=self.registry_url,
                    auth=self._auth,
                    timeout=self._timeout,
                    follow_redirects=False,
                    trust_env=not is_loopback(self.registry_url),
                    transport=self._transport,
                )
            return self._client

    def _post(self, content: bytes, name: str | None) -> tuple[httpx.Response, int]:
        """Ask, and once more where the answer was lost; the answer, and how many were. Raises TemporarilyUnavailableError."""
        headers = {"Content-Type": "application/json"}
        if name is not None:
            headers["Idempotency-Key"] = name
        for tried in range(_TRIES):
            try:
                return self._open().post("/v1/verify", content=content, headers=headers), tried
            except httpx.TransportError as error:
                lost = error
        raise _no_answer() from lost

    def _ask(self, content: bytes, name: str | None) -> dict[str, object]:
        response, lost = self._post(content, name)
        try:
            body = read_object(response.content, max_bytes=_MAX_ANSWER_BYTES)
        except EncodingError as error:
            raise _no_answer() from error
        if response.status_code == httpx.codes.OK:
            if lost and name is None and body.get("reason") == "replayed":
                # By our own first try, it may be, whose answer nobody has: the agent signs anew.
                raise _no_answer()
            return body
        refusal = error_from(response.status_code, body)
        if isinstance(refusal, (*_CALLERS_MISTAKES, TemporarilyUnavailableError)):
            raise refusal
        if isinstance(refusal, IdempotencyInProgressError):
            # Our first try still runs; what comes of it goes to nobody.
            raise _no_answer()
        # Wrong credentials, a limit of ours, a defect: the agent did nothing wrong and must not hear that it did.
        raise RegistryError(
            f"Verify answered {response.status_code} {refusal.code}: {refusal.description}",
            status=response.status_code,
        )


def _no_answer() -> TemporarilyUnavailableError:
    return TemporarilyUnavailableError("The registry gave no decision. Try again shortly.", retry_after=1)
