"""Which key signed a receipt, read out of those from before release 4, so that the receipts of a key are counted by index."""

import uuid
from typing import Final

from django.db.models.functions import Left

from agentauth.protocol.errors import EncodingError
from agentauth.protocol.jose import read_header
from approvals.models import Receipt

# Receipts in one run of the job: well below the 2 s of a statement.
BATCH: Final = 2_000
# More than any header has: a kid has at most 64 characters.
_BEGINNING: Final = 256
_MOST_CHARACTERS: Final = 64


def fill_kids() -> int:
    """Write down which key signed each receipt that does not say so; how many. A process of release 3 writes such ones."""
    found: dict[str, list[uuid.UUID]] = {}
    unread = Receipt.objects.filter(kid=None).annotate(beginning=Left("compact", _BEGINNING))
    for pk, beginning in unread.values_list("pk", "beginning")[:BATCH]:
        found.setdefault(_kid_of(beginning), []).append(pk)
    filled = 0
    for kid, pks in found.items():
        filled += Receipt.objects.filter(pk__in=pks, kid=None).update(kid=kid)
    return filled


def _kid_of(beginning: str) -> str:
    """Empty where the text was erased, or is no receipt."""
    try:
        kid = str(read_header(beginning.partition(".")[0]).get("kid", ""))
    except EncodingError:
        return ""
    # No key of ours has a longer name: an attacker's row must not stop the job for all others.
    return kid if len(kid) <= _MOST_CHARACTERS else ""
