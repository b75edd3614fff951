"""Whether an Accept header allows JSON as we write it (RFC 9110, section 12.5.1).

The Django view judges every header that this does not.
"""

import re
from functools import lru_cache
from typing import Final

# Browsers and libraries send up to some 200 bytes. Longer headers are not cached.
MAX_BYTES: Final = 512
# A browser sends some 12 ranges and weights; 512 bytes could hold 512, which take 0.3 ms to parse.
_MAX_PARTS: Final = 32
# The ranges that include our type, by how specific they are.
_RANKS: Final = {b"application/json": 2, b"application/*": 1, b"*/*": 0}
_WEIGHT: Final = re.compile(rb"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
# We send this charset, so the parameter changes nothing.
_CHARSET: Final = b"charset=utf-8"


def takes_json(header: bytes | None) -> bool:
    """Whether Accept (None: no such header) allows `application/json` without parameters.

    Also False for a JSON range with a parameter of its own (`indent=4`), a malformed header, or one
    above MAX_BYTES or _MAX_PARTS: the Django view decides about these.
    """
    if header is None:
        return True
    is_short = len(header) <= MAX_BYTES and header.count(b",") + header.count(b";") < _MAX_PARTS
    return is_short and _takes_json(header)


@lru_cache(maxsize=256)
def _takes_json(header: bytes) -> bool:
    if b'"' in header:
        # Quotes may contain a comma or semicolon, which this does not parse.
        return False
    weights: dict[int, float] = {}
    for element in header.lower().split(b","):
        media_range, *parameters = (part.strip(b" \t") for part in element.split(b";"))
        rank = _RANKS.get(media_range)
        if rank is None:
            # Another type, or an empty element: neither matters.
            continue
        weight = 1.0
        for parameter in parameters:
            if found := _WEIGHT.fullmatch(parameter):
                weight = float(found[1])
            elif parameter != _CHARSET:
                return False
        weights[rank] = min(weight, weights.get(rank, 1.0))
    # The most specific range counts: `application/json;q=0, */*` allows anything but JSON.
    return bool(weights) and weights[max(weights)] > 0
