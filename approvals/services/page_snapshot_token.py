"""The drawn token: what a page shows, signed, so that a human signs only what the page showed.

Every ceremony whose text a human signs describes its page as a `Page`. The token is made when the
page is drawn, compared when its button is pressed (`ask_signature`), and compared again when the
signature arrives (`accept_signature`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.core import signing
from django.utils.translation import get_language

from agentauth.protocol.errors import GrantChangedError, InvalidRequestError
from approvals.models import Challenge
from approvals.services.change_sentences import change_sentence

_SALT = "approvals.page"
_CHANGED = "This page has changed since it was shown. Reload it and read it again."


@dataclass(frozen=True, slots=True)
class Page:
    """The page of one ceremony: its subject, and everything on it that the signature rests on.

    `shown` maps names to JSON values; `moved` has a sentence for each name.
    """

    purpose: Challenge.Purpose
    subject: str
    shown: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The content of a drawn token: what its page showed, and when it was drawn."""

    at: datetime
    shown: Mapping[str, Any]
    # None: drawn by the previous release, which knew one language.
    language: str | None


def drawn_token(page: Page, *, now: datetime) -> str:
    """The page as drawn at `now`, signed, so that the browser can only return it unchanged."""
    body = {
        "purpose": page.purpose,
        "subject": page.subject,
        "at": now.isoformat(),
        # Of all texts on the page. Without it, a change of language would read as other changes.
        "language": get_language(),
        "shown": dict(page.shown),
    }
    return signing.dumps(body, salt=_SALT, compress=True)


def read_drawn(token: str, purpose: Challenge.Purpose, subject: str) -> Drawn:
    """Read the token of a page of this ceremony. Raises InvalidRequestError for any other token."""
    try:
        body = signing.loads(token, salt=_SALT)
    except signing.BadSignature:
        raise InvalidRequestError(
            "The registry cannot read the token of this page. Reload the page."
        ) from None
    if (body.get("purpose"), body.get("subject")) != (purpose, subject):
        raise InvalidRequestError("This page belongs to a different request.")
    return Drawn(datetime.fromisoformat(body["at"]), body["shown"], body.get("language"))


def check_drawn(page: Page, token: str) -> None:
    """Check that the page would look the same if it were drawn now.

    Raises InvalidRequestError as `read_drawn`; GrantChangedError with `changes`, sentences that say
    what changed.
    """
    drawn = read_drawn(token, page.purpose, page.subject)
    if drawn.language not in {None, get_language()}:
        raise GrantChangedError(_CHANGED, changes=[change_sentence("language", None, None)])
    old = drawn.shown
    # Through JSON, as in the token: a tuple becomes a list.
    new = json.loads(json.dumps(dict(page.shown)))
    differs = [name for name in new if name not in old or old[name] != new[name]]
    if not differs:
        return
    # The text derives from the rest: report it only if nothing else explains the difference.
    told = [name for name in differs if name != "text"] or differs
    raise GrantChangedError(
        _CHANGED,
        changes=[change_sentence(name, old.get(name), new[name]) for name in told],
    )
