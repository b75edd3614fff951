"""A cache of verified tokens: it checks a signature once, and all that can change every time."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Final

from agentauth.protocol.encoding import sha256
from agentauth.protocol.token import TokenClaims, TokenKey, verify_token

# Characters of all cached tokens, as a measure of their claims' size: some 120,000 usual tokens of
# 900 characters, or 7,000 of the longest. Either way some 150 MB (`python -m benchmarks.memory`).
BOUND: Final = 108_000_000
_ENDED_AT_ONCE: Final = 2


@dataclass(frozen=True, slots=True)
class _Proved:
    claims: TokenClaims
    kid: str
    key: TokenKey
    issuer: str
    audience: str
    # When (Unix seconds) `nbf` and `iat` were checked; they hold at any later time.
    at: int
    letters: int

    def holds(self, keys: Mapping[str, TokenKey], issuer: str, audience: str, now: int) -> bool:
        """Whether the full check with these arguments would return the same claims."""
        key = keys.get(self.kid)
        return (
            self.issuer == issuer
            and self.audience == audience
            # Usually it is the same object; comparing the contents takes ten times as long.
            and (key is self.key or key == self.key)
            and self.at <= now < self.claims.expires_at
        )


class ProvedTokens:
    """An LRU cache of tokens by the SHA-256 of their text, at most `bound` characters. Thread-safe.

    It holds valid tokens only, so every refusal comes from `verify_token`, with its reason. It does
    not know about revocation, which is checked with the state.
    """

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._letters = 0
        self._proved: OrderedDict[bytes, _Proved] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._proved)

    def verify(
        self,
        compact: str,
        *,
        keys: Mapping[str, TokenKey],
        expected_issuer: str,
        expected_audience: str,
        now: int,
    ) -> TokenClaims:
        """Return the claims or raise InvalidTokenError, as `agentauth.protocol.token.verify_token`.

        A missing or changed key, another issuer or audience, an expired token or a clock that went
        back is a cache miss: the full check is made.
        """
        # Text that is not valid UTF-8 is no token of ours: let it reach
        # `verify_token` to be refused.
        digest = sha256(compact.encode(errors="surrogatepass"))
        with self._lock:
            proved = self._proved.get(digest)
            if proved is not None:
                self._proved.move_to_end(digest)
        if proved is not None and proved.holds(keys, expected_issuer, expected_audience, now):
            return proved.claims
        token, claims = verify_token(
            compact,
            keys=keys,
            expected_issuer=expected_issuer,
            expected_audience=expected_audience,
            now=now,
        )
        proved = _Proved(
            claims, token.kid, token.key, expected_issuer, expected_audience, now, len(compact)
        )
        self._keep(digest, proved)
        return claims

    def _keep(self, digest: bytes, proved: _Proved) -> None:
        with self._lock:
            self._drop(digest)
            self._proved[digest] = proved
            self._letters += proved.letters
            # Expired tokens are not used any more and move to the front. Removing up to two for
            # each new one keeps them few.
            for each, old in tuple(islice(self._proved.items(), _ENDED_AT_ONCE)):
                if old.claims.expires_at <= proved.at:
                    self._drop(each)
            while self._letters > self._bound:
                self._drop(next(iter(self._proved)))

    def _drop(self, digest: bytes) -> None:
        gone = self._proved.pop(digest, None)
        if gone is not None:
            self._letters -= gone.letters
