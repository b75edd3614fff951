"""Which questions may go without a name of their own: those of which the registry keeps nothing that a lost answer could cost."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from agentauth.protocol.capability import Action
from agentauth.protocol.encoding import sha256

_MOST_TOKENS: Final = 10_000


class Uncounted:
    """Tokens under which no budget and no uses are counted, as the last answer said. Safe to share between threads.

    An answer that is to be found again under a key is committed to the registry's database, which costs twenty times as
    much as the decision. Where nothing is counted a lost answer costs an agent one more signature and nothing else.
    """

    def __init__(self) -> None:
        self._tokens: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def holds(self, token: str, action: Action | None, idempotency_key: str | None) -> bool:
        """Whether this question counts nothing. Of a token that is not known yet, no."""
        if idempotency_key is not None or (action is not None and action.lasts):
            return False
        with self._lock:
            return _digest(token) in self._tokens

    def learn(self, token: str, answer: Mapping[str, object]) -> None:
        """Read the `limits` of a yes under this token."""
        limits = answer.get("limits")
        plain = (
            isinstance(limits, Mapping)
            and limits.get("budgets") == []
            and limits.get("uses_remaining", 0) is None
        )
        with self._lock:
            self._tokens.pop(_digest(token), None)
            if plain:
                self._tokens[_digest(token)] = None
            if len(self._tokens) > _MOST_TOKENS:
                self._tokens.popitem(last=False)


def _digest(token: str) -> bytes:
    return sha256(token.encode(errors="surrogatepass"))
