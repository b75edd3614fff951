"""What a page shows, signed into it as its drawn token: nothing is signed that is not what the page showed.

Every ceremony whose text a person signs describes its page as a `Page`. The token is made when the page is drawn,
compared when its button is pressed (`ask_signature`), and once more when the signature arrives (`accept_signature`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.core import signing

from agentauth.protocol.errors import GrantChangedError, InvalidRequestError
from approvals.models import Challenge
from approvals.services.moved import moved

_SALT = "approvals.page"


@dataclass(frozen=True, slots=True)
class Page:
    """The page of one ceremony: what it is about, and everything on it that the signature rests on.

    `shown` maps names that `moved` has sentences for to JSON values.
    """

    purpose: Challenge.Purpose
    subject: str
    shown: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn token that was read: what its page showed, and when it was drawn."""

    at: datetime
    shown: Mapping[str, Any]


def drawn_token(page: Page, *, now: datetime) -> str:
    """The page as it is drawn at `now`, signed, so that it can hand this back unchanged."""
    body = {
        "purpose": page.purpose,
        "subject": page.subject,
        "at": now.isoformat(),
        "shown": dict(page.shown),
    }
    return signing.dumps(body, salt=_SALT, compress=True)


def read_drawn(token: str, purpose: Challenge.Purpose, subject: str) -> Drawn:
    """Read the token of a page of this ceremony. Raises InvalidRequestError for one we did not make for it."""
    try:
        body = signing.loads(token, salt=_SALT)
    except signing.BadSignature:
        raise InvalidRequestError("The page could not be read. Reload it.") from None
    if (body.get("purpose"), body.get("subject")) != (purpose, subject):
        raise InvalidRequestError("This page belongs to another request.")
    return Drawn(datetime.fromisoformat(body["at"]), body["shown"])


def check_drawn(page: Page, token: str) -> None:
    """See that the page would be drawn now as it was.

    Raises InvalidRequestError as `read_drawn`; GrantChangedError with `changes`, sentences that say what moved.
    """
    old = read_drawn(token, page.purpose, page.subject).shown
    # As the token holds it: a tuple comes back from JSON as a list.
    new = json.loads(json.dumps(dict(page.shown)))
    differs = [name for name in new if name not in old or old[name] != new[name]]
    if not differs:
        return
    # The text is made from the rest: by itself it is told only where the rest does not explain it.
    told = [name for name in differs if name != "text"] or differs
    raise GrantChangedError(
        "This page has changed since it was shown. Reload it and read it again.",
        changes=[moved(name, old.get(name), new[name]) for name in told],
    )
