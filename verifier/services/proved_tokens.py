"""Tokens this process has proved: a signature is checked once, everything that time or a change can take away each time."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Final

from agentauth.protocol.encoding import sha256
from agentauth.protocol.token import TokenClaims, TokenKey, verify_token

# Letters of all that are kept, as a measure of their claims: some 120,000 usual tokens of 900 letters, or 7,000 of the longest.
# Either way some 150 MB (`python -m benchmarks.memory`).
BOUND: Final = 108_000_000
_ENDED_AT_ONCE: Final = 2


@dataclass(frozen=True, slots=True)
class _Proved:
    claims: TokenClaims
    kid: str
    key: TokenKey
    issuer: str
    audience: str
    # Unix seconds: `nbf` and `iat` passed at this time, and so do later on.
    at: int
    letters: int

    def holds(self, keys: Mapping[str, TokenKey], issuer: str, audience: str, now: int) -> bool:
        """Would the full check, with these arguments, give the same claims?"""
        key = keys.get(self.kid)
        return (
            self.issuer == issuer
            and self.audience == audience
            # Most often it is the very object; to compare what is in it takes ten times as long.
            and (key is self.key or key == self.key)
            and self.at <= now < self.claims.expires_at
        )


class ProvedTokens:
    """Tokens by SHA-256 of their exact text, at most `bound` letters of it, the one not seen for longest goes first. For all threads.

    Only what passed is kept, so whatever is refused here is refused by `verify_token` itself, with its own reason.
    It says nothing of revocation, which is no property of a token's text: that is looked at with the state.
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
        """The claims that `agentauth.protocol.token.verify_token` gives, the same for the same arguments. Raises InvalidTokenError.

        A key that is gone or is another one, another issuer or audience, a token past its end, a clock that went
        back: each is no hit, and the whole check is made.
        """
        # A text that no UTF-8 can hold is none of ours.
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
        proved = _Proved(claims, token.kid, token.key, expected_issuer, expected_audience, now, len(compact))
        self._keep(digest, proved)
        return claims

    def _keep(self, digest: bytes, proved: _Proved) -> None:
        with self._lock:
            self._drop(digest)
            self._proved[digest] = proved
            self._letters += proved.letters
            # What has ended is asked for no more and comes to stand first: two go for each that comes, so they are never many.
            for each, old in tuple(islice(self._proved.items(), _ENDED_AT_ONCE)):
                if old.claims.expires_at <= proved.at:
                    self._drop(each)
            while self._letters > self._bound:
                self._drop(next(iter(self._proved)))

    def _drop(self, digest: bytes) -> None:
        gone = self._proved.pop(digest, None)
        if gone is not None:
            self._letters -= gone.letters
