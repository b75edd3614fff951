"""Whether an Accept header takes JSON as we write it (RFC 9110, section 12.5.1). What else it may say is the Django view's to judge."""

import re
from functools import lru_cache
from typing import Final

# Browsers and libraries send up to some 200 bytes; what is longer is not kept.
MAX_BYTES: Final = 512
# A browser sends some 12 ranges and weights; 512 bytes could hold 512, which take 0.3 ms to read.
_MAX_PARTS: Final = 32
# How specific a range is that holds our type.
_RANKS: Final = {b"application/json": 2, b"application/*": 1, b"*/*": 0}
_WEIGHT: Final = re.compile(rb"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
# What we send, so it asks for nothing else.
_CHARSET: Final = b"charset=utf-8"


def takes_json(header: bytes | None) -> bool:
    """Whether the lines of Accept, None where there is none, take `application/json` without parameters.

    False also for a range of JSON with a parameter of its own (`indent=4`), for what is malformed, and for more than
    MAX_BYTES or _MAX_PARTS: the view decides about these.
    """
    if header is None:
        return True
    is_short = len(header) <= MAX_BYTES and header.count(b",") + header.count(b";") < _MAX_PARTS
    return is_short and _takes_json(header)


@lru_cache(maxsize=256)
def _takes_json(header: bytes) -> bool:
    if b'"' in header:
        # A comma or semicolon may stand within quotes.
        return False
    weights: dict[int, float] = {}
    for element in header.lower().split(b","):
        media_range, *parameters = (part.strip(b" \t") for part in element.split(b";"))
        rank = _RANKS.get(media_range)
        if rank is None:
            # Another type, which does not matter beside ours; an empty element stands for nothing.
            continue
        weight = 1.0
        for parameter in parameters:
            if found := _WEIGHT.fullmatch(parameter):
                weight = float(found[1])
            elif parameter != _CHARSET:
                return False
        weights[rank] = min(weight, weights.get(rank, 1.0))
    # The most specific range counts: `application/json;q=0, */*` takes anything but ours.
    return bool(weights) and weights[max(weights)] > 0
