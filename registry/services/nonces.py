"""DPoP server nonces: computed from the clock, so that all processes agree and store nothing."""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import chain
from typing import Final

from agentauth.protocol.encoding import b64u_encode
from registry.services.secret_key_macs import derive_macs

# One nonce per step of the clock. It is accepted in its step, in the one after, and in the one
# before, since the process that issued it may have a clock ahead of ours. So it lives 90 to 180 s,
# and clocks may differ by a step.
STEP_SECONDS = 90
# 128 bits: a nonce that cannot be guessed shows that its proof was made after the nonce was issued.
NONCE_BYTES = 16
# The issuer of a nonce: the registry for calls to its own API, a service provider (by id) for calls
# to it. One server's nonce is invalid at another, as if each had a secret of its own (RFC 9449
# section 9).
REGISTRY = "registry"
_KEPT: Final = 4_096


@dataclass(frozen=True, slots=True)
class Nonces:
    """What one server accepts at one moment; `current` is what it issues.

    `older` are the nonces by a former SECRET_KEY.
    """

    previous: str
    current: str
    following: str
    older: tuple[str, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """All nonces that a proof may carry now."""
        return self.previous, self.current, self.following, *self.older

    def fresh_for(self, used: str | None) -> str | None:
        """The nonce to send with an answer: `current` if `used` is about to end, else None."""
        return self.current if used == self.previous or used in self.older else None


def nonces_of(server: str, now: datetime) -> Nonces:
    """The nonces of `server` (REGISTRY or a service provider's id) at the aware time `now`.

    Nothing is stored or spent. A nonce limits how long before its use a proof can have been made;
    the replay cache limits it to one use. So any number of proofs may carry the same nonce
    (docs/protocol.md section 2).
    """
    return _nonces(server, int(now.timestamp()) // STEP_SECONDS)


# All calls to a server within one step share these.
@lru_cache(maxsize=_KEPT)
def _nonces(server: str, step: int) -> Nonces:
    steps = [_nonce(server, each) for each in (step - 1, step, step + 1)]
    previous, current, following = (each[0] for each in steps)
    return Nonces(
        previous, current, following, tuple(chain.from_iterable(each[1:] for each in steps))
    )


def _nonce(server: str, step: int) -> tuple[str, ...]:
    """The nonce by SECRET_KEY, which is issued, then one by each of SECRET_KEY_FALLBACKS."""
    made = derive_macs("agentauth/dpop-nonce/v1", server, str(step))
    return tuple(b64u_encode(each[:NONCE_BYTES]) for each in made)
