"""One call to a service provider: its tries, each with a new proof, and what each answer leads to.

`Conversation` decides, `send` sends; the signing adapters for httpx and requests send by their own
client. No redirect is followed with a proof.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import AgentAuthError, EncodingError, TemporarilyUnavailableError

from .agent_lifecycle import AgentLife
from .bounded_http import UnreadAnswerError, ask_service
from .clock_check import clock_error
from .decision_polling import Callback, tell, wait_for_confirmation, wait_for_grant
from .errors import ClockError, GrantPendingError, NoGrantError
from .grant_choice import is_usable, waits_for_human
from .grants_and_tokens import AgentGrants, Signed
from .registry_answers import Confirmation, Grant
from .registry_http import (
    ATTEMPTS,
    new_key,
    open_client,
    pause,
    retry_after,
)

# Seconds. A shorter Retry-After is waited for; a longer one is for the caller to decide.
LONGEST_WAIT_SECONDS: Final = 10
# Bytes. A refusal is at most 1 kB; of a longer answer nothing is read.
MAX_REFUSAL_BYTES: Final = 65_536
# Seconds between two tries while a person is to come online, and for how long.
ONLINE_SECONDS: Final = 10
LONGEST_ONLINE_SECONDS: Final = 3_600
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Call:
    """One operation. `url` may be a path at the audience's origin.

    `ask_for` is requested if no grant covers the call. `on_pending` gets the grant and `on_step_up`
    the confirmation that a person must decide about; the call then waits for the decision.
    """

    service: str
    method: str
    url: str
    action: Action | None = None
    idempotency_key: str | None = None
    ask_for: Sequence[Capability] = ()
    on_pending: Callback[Grant] | None = None
    on_step_up: Callback[Confirmation] | None = None
    # False for a body that can be sent once. No person is then asked for its repetition.
    is_repeatable: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """What a conversation reads of an answer; `content` only if it is short."""

    status: int
    headers: Mapping[str, str]
    content: bytes = b""

    @property
    def challenge(self) -> str:
        """The `WWW-Authenticate` of a 401, else an empty text."""
        is_challenge = self.status == httpx.codes.UNAUTHORIZED
        return self.headers.get("WWW-Authenticate", "") if is_challenge else ""

    def body(self) -> Mapping[str, object]:
        """The JSON object of a refusal; empty if there is none that can be read."""
        try:
            return read_object(self.content, max_bytes=MAX_REFUSAL_BYTES) if self.content else {}
        except EncodingError:
            return {}


@dataclass(slots=True)
class Conversation:
    """The tries of one call. For each: `headers`, send, then `is_to_be_repeated` with the answer.

    All tries have one Idempotency-Key, so that a try whose answer was lost does not act twice. At
    most four tries; those that an answer asked for (a nonce, a fresh token, a person's consent) do
    not count, and each kind happens once.
    """

    life: AgentLife
    grants: AgentGrants
    call: Call
    tries: int = 0
    _key: str | None = None
    _signed: Signed | None = field(default=None, repr=False)
    _had_nonce: bool = False
    _had_fresh_token: bool = False
    _had_asked: bool = False
    _had_confirmation: bool = False
    _online_until: float | None = None

    def __post_init__(self) -> None:
        self._key = self.call.idempotency_key
        if self._key is None and self.call.method.upper() not in _SAFE:
            self._key = new_key()

    @property
    def is_answered(self) -> bool:
        """Is the last answer final if the next try cannot be signed?"""
        return self._had_fresh_token

    async def headers(self) -> dict[str, str]:
        """The headers of the next try, once it is its turn. Raises as `AgentAuthClient.call`."""
        try:
            signed = await self._sign()
        except (GrantPendingError, NoGrantError) as error:
            if not await self._ask(error):
                raise
            signed = await self._sign()
        self._signed = signed
        key = {} if self._key is None else {"Idempotency-Key": self._key}
        return {**signed.headers, **key}

    async def _sign(self) -> Signed:
        call = self.call
        return await self.grants.sign(
            call.service, call.method, call.url, action=call.action, paced=True
        )

    async def is_to_be_repeated(self, answer: Answer | None) -> bool:
        """Is another try due, after the needed wait? None is a lost answer.

        Raises ClockError, and what the registry refuses.
        """
        signed, self._signed = self._signed, None
        assert signed is not None
        self._end_turn(signed, answer)
        if answer is not None:
            if await self._asks_for_more(signed, answer):
                return self.call.is_repeatable
            if not _heals(answer):
                return False
        if not self.call.is_repeatable:
            return False
        self.tries += 1
        if self.tries >= ATTEMPTS:
            return False
        await pause(self.tries - 1, None if answer is None else retry_after(answer.headers))
        return True

    def cancel(self) -> None:
        """End the turn of a try that was never answered."""
        if self._signed is not None:
            self._end_turn(self._signed, None)

    def _end_turn(self, signed: Signed, answer: Answer | None) -> None:
        if signed.turn is None:
            return
        asked = None if answer is None else retry_after(answer.headers)
        if answer is None or answer.status not in {401, 403, 429}:
            signed.turn.count()
        elif asked is not None and answer.body().get("reason") == "rate":
            signed.turn.wait_for(asked)
        else:
            signed.turn.give_back()

    async def _asks_for_more(self, signed: Signed, answer: Answer) -> bool:
        """Does the answer ask for another proof, token or consent, that was not tried yet?"""
        challenge = answer.challenge
        refused = 'error="use_dpop_nonce"' in challenge
        is_new = signed.server_nonce.take(answer.headers, sent=signed.sent_nonce, refused=refused)
        if refused:
            # Once: a server that refuses its own nonces would cause an endless loop.
            again = is_new and not self._had_nonce
            self._had_nonce = True
            return again
        if 'error="invalid_token"' in challenge:
            # The grant may have changed since the token was issued (its version rose).
            again, self._had_fresh_token = not self._had_fresh_token, True
            if again:
                self.grants.drop_token(self.call.service, signed.token)
            return again
        if 'error="invalid_dpop_proof"' in challenge and answer.body().get("reason") == "iat":
            off = clock_error("The service provider", answer.headers)
            if off is not None:
                raise off
        if answer.status == httpx.codes.FORBIDDEN and self.call.is_repeatable:
            return await self._consents(answer.body())
        return False

    # ---- what a person decides

    async def _ask(self, error: GrantPendingError | NoGrantError) -> bool:
        """Ask a person for what the call needs, once; True if they approved something."""
        if self._had_asked:
            return False
        self._had_asked = True
        call = self.call
        if isinstance(error, GrantPendingError):
            return call.on_pending is not None and await self._decided(error.grant_id)
        if not call.ask_for:
            return False
        grant = await self.grants.ensure(
            call.service, call.ask_for, None, reason="", ask_again=False
        )
        if not waits_for_human(grant):
            return False
        if call.on_pending is None:
            raise await self.grants.pending(grant)
        return await self._decided(grant.grant_id)

    async def _decided(self, grant_id: str) -> bool:
        decided = await wait_for_grant(
            self.life, grant_id, with_link=self.grants.with_link, on_pending=self.call.on_pending
        )
        self.grants.forget()
        return is_usable(decided)

    async def _consents(self, body: Mapping[str, object]) -> bool:
        if body.get("error") == "insufficient_scope":
            return await self._ask(NoGrantError(""))
        if body.get("error") != "step_up_required" or self.call.on_step_up is None:
            return False
        if body.get("reason") == "human_offline":
            return await self._comes_online()
        confirmation_id = body.get("confirmation_id")
        # Once: a service provider could otherwise ask the person again and again.
        if not isinstance(confirmation_id, str) or self._had_confirmation:
            return False
        self._had_confirmation = True
        # The link is the registry's: one from the service provider could lead anywhere.
        decided = await wait_for_confirmation(
            self.life, confirmation_id, on_pending=self.call.on_step_up
        )
        return decided.status == "confirmed"

    async def _comes_online(self) -> bool:
        now = time.monotonic()
        if self._online_until is None:
            self._online_until = now + LONGEST_ONLINE_SECONDS
            online = Confirmation("", "human_offline", f"{self.grants.registry_url}/")
            await tell(self.call.on_step_up, online)
        if now >= self._online_until:
            return False
        await asyncio.sleep(ONLINE_SECONDS)
        return True


async def send(
    conversation: Conversation,
    url: str,
    *,
    json: Any,
    max_bytes: int,
    transport: httpx.AsyncBaseTransport | None,
) -> httpx.Response:
    """Send until there is a final answer.

    Raises TemporarilyUnavailableError if none came, or if one came that is compressed or exceeds
    `max_bytes`: that one is not asked for again.
    """
    response: httpx.Response | None = None
    while True:
        lost: TemporarilyUnavailableError | None = None
        try:
            headers = await conversation.headers()
        except ClockError:
            raise
        except AgentAuthError:
            # Without a new token, the service provider's last answer is final.
            if response is None or not conversation.is_answered:
                raise
            return response
        try:
            async with open_client(url, transport) as client:
                response = await ask_service(
                    client,
                    conversation.call.method,
                    url,
                    max_bytes=max_bytes,
                    headers={"Accept": "application/json", **headers},
                    json=json,
                )
        except UnreadAnswerError:
            conversation.cancel()
            raise
        except TemporarilyUnavailableError as error:
            response, lost = None, error
        except BaseException:
            conversation.cancel()
            raise
        answer = None if response is None else answer_of(response)
        if await conversation.is_to_be_repeated(answer):
            continue
        if lost is not None:
            raise lost
        assert response is not None
        return response


def answer_of(response: httpx.Response) -> Answer:
    """An answer that httpx has read."""
    return Answer(response.status_code, response.headers, response.content)


def _heals(answer: Answer) -> bool:
    asked = retry_after(answer.headers)
    if answer.status == httpx.codes.SERVICE_UNAVAILABLE:
        return (asked or 0) <= LONGEST_WAIT_SECONDS
    return (
        answer.status == httpx.codes.TOO_MANY_REQUESTS
        and asked is not None
        and asked <= LONGEST_WAIT_SECONDS
    )
