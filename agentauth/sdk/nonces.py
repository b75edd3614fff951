"""The nonce a server gave out last, to go into every further proof for it. No I/O."""

import re
from collections.abc import Mapping
from typing import Final

HEADER: Final = "DPoP-Nonce"
# RFC 9449 section 8.1 (NQCHAR). Two header lines come joined by a comma and a space, and so are no nonce; an endless
# one would make the proof longer than anybody reads.
_NONCE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,512}")


def read_nonce(value: object) -> str | None:
    """A nonce that a header and a proof may carry; None for anything else."""
    return value if isinstance(value, str) and _NONCE.fullmatch(value) else None


class ServerNonce:
    """What one server, the registry or one service provider, wants in our next proof; None of what it never asked."""

    def __init__(self) -> None:
        self.latest: str | None = None

    def take(self, headers: Mapping[str, str], *, sent: str | None, refused: bool) -> bool:
        """Keep the nonce an answer brings; True if it is another than the one that was `sent`.

        `refused` says that the server did not like what was sent. Where it then gives no other, ours is forgotten:
        the next proof goes without one, rather than all of them fail.
        """
        given = read_nonce(headers.get(HEADER))
        if given is not None:
            self.latest = given
            return given != sent
        if refused:
            self.latest = None
        return False
