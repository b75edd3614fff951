"""Server nonces of DPoP: computed from the clock, so that every process agrees and nobody remembers anything."""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import chain
from typing import Final

from agentauth.protocol.encoding import b64u_encode
from registry.services.codes import derived

# One nonce for each step of the clock. It is taken in its step, in the one after, and in the one before, since the
# process that gave it out may have a clock ahead of ours: it lives 90 to 180 s, and clocks may differ by a step.
STEP_SECONDS = 90
# 128 bits: a nonce that cannot be guessed shows that its proof was made after the nonce was given out.
NONCE_BYTES = 16
# Who gives a nonce out. The registry for calls of its own API; for calls of a service provider, that provider by id.
# One server's nonce is no nonce at another, as if each had a secret of its own (RFC 9449 section 9).
REGISTRY = "registry"
_KEPT: Final = 4_096


@dataclass(frozen=True, slots=True)
class Nonces:
    """What one server takes at one moment; `current` is what it gives out. `older` are those by an earlier SECRET_KEY."""

    previous: str
    current: str
    following: str
    older: tuple[str, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """All a proof may carry now."""
        return self.previous, self.current, self.following, *self.older

    def fresh_for(self, used: str | None) -> str | None:
        """The nonce to send along with an answer: to whom used one that is about to end, and else none."""
        return self.current if used == self.previous or used in self.older else None


def nonces_of(server: str, now: datetime) -> Nonces:
    """The nonces of `server`, which is REGISTRY or a service provider's id, at the aware time `now`.

    Nothing is stored and nothing is spent: a nonce bounds how long before its use a proof can have been made, and
    single use is the replay memory's. So any number of proofs may carry the same one (docs/protocol.md section 2).
    """
    return _nonces(server, int(now.timestamp()) // STEP_SECONDS)


# The same three for all calls of a server in one step.
@lru_cache(maxsize=_KEPT)
def _nonces(server: str, step: int) -> Nonces:
    steps = [_nonce(server, each) for each in (step - 1, step, step + 1)]
    previous, current, following = (each[0] for each in steps)
    return Nonces(previous, current, following, tuple(chain.from_iterable(each[1:] for each in steps)))


def _nonce(server: str, step: int) -> tuple[str, ...]:
    """By the key that gives them out, then by each other one."""
    made = derived("agentauth/dpop-nonce/v1", server, str(step))
    return tuple(b64u_encode(each[:NONCE_BYTES]) for each in made)
