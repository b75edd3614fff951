"""Which key signed a receipt, read out of those from before release 4, so that the receipts of a key are counted by index."""

import uuid
from typing import Final

from agentauth.protocol.errors import EncodingError
from agentauth.protocol.jose import read_header
from approvals.models import Receipt

# Receipts in one run of the job: some 8 MB.
BATCH: Final = 2_000


def fill_kids() -> int:
    """Write down which key signed each receipt that does not say so; how many. A process of release 3 writes such ones."""
    found: dict[str, list[uuid.UUID]] = {}
    for pk, compact in Receipt.objects.filter(kid=None).values_list("pk", "compact")[:BATCH]:
        found.setdefault(_kid_of(compact), []).append(pk)
    filled = 0
    for kid, pks in found.items():
        filled += Receipt.objects.filter(pk__in=pks, kid=None).update(kid=kid)
    return filled


def _kid_of(compact: str) -> str:
    """Empty where the text was erased, or is no receipt."""
    try:
        return str(read_header(compact.partition(".")[0]).get("kid", ""))
    except EncodingError:
        return ""
