"""Access tokens in memory: one for each use, renewed before it ends, issued once however many ask. No I/O of its own."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from agentauth.protocol.errors import TemporarilyUnavailableError

from .errors import RegistryError

# A token is renewed when a fifth of its life, at most a minute, is left: a call under way does not outlive it.
_MARGIN_SECONDS: Final = 60
_MARGIN_SHARE: Final = 5

# Service provider as the caller names it, and the grant if the caller names one.
Use = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Token:
    """A token and the unix times at which to renew it and at which it ends."""

    value: str = field(repr=False)
    renew_at: float
    expires_at: float

    @classmethod
    def of(cls, answer: Mapping[str, object], *, asked_at: float) -> Self:
        """Read `POST /v1/tokens`. Raises RegistryError.

        Life counts from `asked_at`, before the question: a slow answer must not make a token look younger than it is.
        """
        value, life = answer.get("access_token"), answer.get("expires_in")
        if not isinstance(value, str) or not isinstance(life, int):
            raise RegistryError("The registry's answer has no token.", status=200)
        margin = min(_MARGIN_SECONDS, life / _MARGIN_SHARE)
        return cls(value, renew_at=asked_at + life - margin, expires_at=asked_at + life)


class TokenCache:
    """The tokens of one client; none is ever written to disk."""

    def __init__(self) -> None:
        self._tokens: dict[Use, Token] = {}
        self._locks: dict[Use, asyncio.Lock] = {}

    async def get(self, use: Use, issue: Callable[[], Awaitable[Token]]) -> str:
        """The token for this use: the cached one while it is fresh, else a new one. Raises what `issue` raises."""
        # One lock for each use: callers at the same moment share one issue.
        async with self._locks.setdefault(use, asyncio.Lock()):
            token = self._tokens.get(use)
            if token is None or token.renew_at <= time.time():
                try:
                    token = await issue()
                except TemporarilyUnavailableError:
                    # Renewal is early, so the old one still carries over a short outage.
                    if token is None or token.expires_at <= time.time():
                        raise
                self._tokens[use] = token
            return token.value

    def forget(self, service_provider_id: str | None = None) -> None:
        """Drop the tokens for one service provider, or all."""
        self._tokens = {
            use: token
            for use, token in self._tokens.items()
            if service_provider_id is not None and use[0] != service_provider_id
        }
