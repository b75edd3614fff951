"""Erasing what an event's commitments hide: the event, its hash and every proof over it stay as they are."""

import uuid

from django.db.models import Q

from audit.models import Opening


def erase_openings(*, human_id: uuid.UUID, email: str) -> int:
    """Delete the openings of everything recorded about this human, inside the caller's transaction; how many.

    Also those that hold their address without their id: an invitation was sent before they existed
    (docs/protocol.md section 9).
    """
    theirs = Q(event__human_id=human_id) | Q(member="email", value=email)
    deleted, _ = Opening.objects.filter(theirs).delete()
    return deleted
