"""Fills in which key signed receipts from before release 4, so that an index counts them by key."""

import uuid
from typing import Final

from django.db.models.functions import Left

from agentauth.protocol.errors import EncodingError
from agentauth.protocol.jose import read_header
from approvals.models import Receipt

# Receipts per run of the job; its statements stay well below the 2 s limit.
BATCH: Final = 2_000
# Characters read of each receipt: more than any header has, as a kid has at most 64.
_BEGINNING: Final = 256
_MOST_CHARACTERS: Final = 64


def fill_kids() -> int:
    """Fill in the signing key of receipts that lack it. Returns how many.

    A process of release 3 still writes such receipts.
    """
    found: dict[str, list[uuid.UUID]] = {}
    unread = Receipt.objects.filter(kid=None).annotate(beginning=Left("compact", _BEGINNING))
    for pk, beginning in unread.values_list("pk", "beginning")[:BATCH]:
        found.setdefault(_kid_of(beginning), []).append(pk)
    filled = 0
    for kid, pks in found.items():
        filled += Receipt.objects.filter(pk__in=pks, kid=None).update(kid=kid)
    return filled


def _kid_of(beginning: str) -> str:
    """The kid in the header; empty if the text was erased or is not a receipt."""
    try:
        kid = str(read_header(beginning.partition(".")[0]).get("kid", ""))
    except EncodingError:
        return ""
    # No key of ours has a longer kid. A forged row must not stop the job for all others.
    return kid if len(kid) <= _MOST_CHARACTERS else ""
