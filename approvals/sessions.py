"""Sessions: the database holds only a digest of each key, and each ends when idle or too old."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib import messages
from django.contrib.auth import HASH_SESSION_KEY, login
from django.contrib.sessions.backends import db
from django.contrib.sessions.base_session import AbstractBaseSession
from django.contrib.sessions.models import Session
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.translation import gettext as _

from approvals.browser_names import name_browser
from approvals.models import HumanSession, Passkey
from registry.models import Human

IDLE = timedelta(minutes=30)
LIFE = timedelta(hours=12)
# Seconds between two records of activity, so that not every click is a database write.
SEEN_SECONDS = 60
# Our scripts send it with background requests: an open page alone must not keep a session alive.
BACKGROUND_HEADER = "X-Background"
BACKEND = "approvals.passkeys.PasskeyBackend"

_BEGAN, _SEEN = "began", "seen"
# Whether it is in the person's list; the browser, and the address it was last used from.
_LISTED, _BROWSER, _ADDRESS = "listed", "browser", "address"
# The tag of a message on the first page after a sign-in, beside which templates show a link.
SECOND_PASSKEY = "second-passkey"


def stored_key(session_key: str) -> str:
    """The primary key of a session's row: 160 bits of SHA-256 of its key, the size of the column.

    Only the browser has the key itself, so reading the database gives access to no session.
    """
    return hashlib.sha256(session_key.encode()).hexdigest()[:40]


class SessionStore(db.SessionStore):
    """Django's database sessions under `stored_key`, ended by IDLE or LIFE, whichever is first."""

    def load(self) -> dict[str, Any]:
        living = Session.objects.filter(
            pk=stored_key(self.session_key or ""), expire_date__gt=timezone.now()
        )
        row = living.first()
        if row is None:
            # As Django does: adopting an unknown key would allow session fixation.
            self._session_key = None
            return {}
        return self.decode(row.session_data)

    def exists(self, session_key: str) -> bool:
        return Session.objects.filter(pk=stored_key(session_key)).exists()

    def create_model_instance(self, data: dict[str, Any]) -> AbstractBaseSession:
        row = super().create_model_instance(data)
        row.session_key = stored_key(row.session_key)
        return row

    def delete(self, session_key: str | None = None) -> None:
        if key := session_key or self.session_key:
            forget_sessions([stored_key(key)])

    def get_expiry_date(self, **_more: Any) -> datetime:
        """30 minutes from now, but no later than 12 hours after the sign-in."""
        idle_end = timezone.now() + IDLE
        began = self.get(_BEGAN)
        return (
            idle_end if began is None else min(idle_end, datetime.fromtimestamp(began, UTC) + LIFE)
        )

    def get_expiry_age(self, **_more: Any) -> int:
        return max(0, int((self.get_expiry_date() - timezone.now()).total_seconds()))


def forget_sessions(stored_keys: Iterable[str]) -> None:
    """End these sessions, given by `stored_key`, and drop them from their person's list."""
    keys = list(stored_keys)
    Session.objects.filter(pk__in=keys).delete()
    HumanSession.objects.filter(session_key__in=keys).delete()


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What a session's data says: which browser uses it, since when, last when and from where."""

    browser: str
    address: str
    began: datetime
    used: datetime
    auth_hash: str


def read_facts(row: Session) -> SessionFacts:
    """The facts in a session's data."""
    data = SessionStore().decode(row.session_data)
    return SessionFacts(
        browser=data.get(_BROWSER, ""),
        address=data.get(_ADDRESS, ""),
        began=datetime.fromtimestamp(data.get(_BEGAN, 0), UTC),
        used=datetime.fromtimestamp(data.get(_SEEN, 0), UTC),
        auth_hash=data.get(HASH_SESSION_KEY, ""),
    )


def start_session(request: HttpRequest, human: Human, *, now: datetime) -> None:
    """Sign the human in under a new session key, so that a key known from before is useless."""
    # login() keeps the key if the same human signs in again, so flush first.
    request.session.flush()
    login(request, human, backend=BACKEND)
    request.session[_BEGAN] = int(now.timestamp())
    if Passkey.objects.filter(human=human).count() == 1:
        said = _("You have one passkey. If you lose it, only an administrator can let you back in.")
        messages.info(request, said, extra_tags=SECOND_PASSKEY)
    _note_use(request, human, int(now.timestamp()))


def _note_use(request: HttpRequest, human: Human, now: int) -> None:
    """Note in the session when and where it is used, and once list it as the human's."""
    request.session[_SEEN] = now
    request.session[_BROWSER] = name_browser(request.headers.get("User-Agent", ""))
    request.session[_ADDRESS] = str(getattr(request, "client_address", ""))
    if _LISTED not in request.session:
        HumanSession.objects.get_or_create(
            session_key=stored_key(str(request.session.session_key)), defaults={"human": human}
        )
        request.session[_LISTED] = True


def keep_session(request: HttpRequest, human: Human) -> None:
    """Keep this request's session although every session of the human was just ended."""
    request.session[HASH_SESSION_KEY] = human.get_session_auth_hash()


class KeepSessionMiddleware:
    """Extend a session when the human does something; background requests do not count."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        now = int(timezone.now().timestamp())
        human = request.user
        if (
            isinstance(human, Human)
            and BACKGROUND_HEADER not in request.headers
            and now - int(request.session.get(_SEEN, 0)) >= SEEN_SECONDS
        ):
            _note_use(request, human, now)
        return self.get_response(request)
