"""The latest nonce of a server, for every further proof to it. No I/O."""

import re
from collections.abc import Mapping
from typing import Final

HEADER: Final = "DPoP-Nonce"
# NQCHAR of RFC 9449 section 8.1. Two header lines arrive joined by a comma and a space, so they do
# not match; the length bounds the proof.
_NONCE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,512}")


def read_nonce(value: object) -> str | None:
    """Return a nonce that fits a header and a proof; None for anything else."""
    return value if isinstance(value, str) and _NONCE.fullmatch(value) else None


class ServerNonce:
    """The nonce that one server (the registry or a service provider) wants in our next proof; None
    if it never sent one.
    """

    def __init__(self) -> None:
        self.latest: str | None = None

    def take(self, headers: Mapping[str, str], *, sent: str | None, refused: bool) -> bool:
        """Store the nonce of an answer; True if it differs from the one `sent`.

        `refused`: the server refused the nonce sent. If it sends no other, ours is dropped, so that
        the next proof goes without one instead of failing again.
        """
        given = read_nonce(headers.get(HEADER))
        if given is not None:
            self.latest = given
            return given != sent
        if refused:
            self.latest = None
        return False
