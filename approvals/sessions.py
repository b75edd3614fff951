"""Sessions of people: what lies in the database opens none, and each ends by itself, unused or old."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib.auth import HASH_SESSION_KEY, login
from django.contrib.sessions.backends import db
from django.contrib.sessions.base_session import AbstractBaseSession
from django.contrib.sessions.models import Session
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

from registry.models import Human

IDLE = timedelta(minutes=30)
LIFE = timedelta(hours=12)
# How often an act of the person is written down: a click each second is not a write each second.
SEEN_SECONDS = 60
# Sent by our scripts with what a page does by itself: an open page alone does not keep a session.
BACKGROUND_HEADER = "X-Background"
BACKEND = "approvals.passkeys.PasskeyBackend"

_BEGAN, _SEEN = "began", "seen"


def stored_key(session_key: str) -> str:
    """The name of a session's row: 160 bits of its key's SHA-256, as many as the column holds.

    The key itself is in the browser alone, so who reads the database cannot ride anybody's session.
    """
    return hashlib.sha256(session_key.encode()).hexdigest()[:40]


class SessionStore(db.SessionStore):
    """Django's database sessions under `stored_key`, ending at whichever of the two ends comes first."""

    def load(self) -> dict[str, Any]:
        living = Session.objects.filter(pk=stored_key(self.session_key or ""), expire_date__gt=timezone.now())
        row = living.first()
        if row is None:
            # As Django does: a key that was not found is never taken over.
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
            Session.objects.filter(pk=stored_key(key)).delete()

    def get_expiry_date(self, **_more: Any) -> datetime:
        """30 minutes from now, but no later than 12 hours after the sign-in."""
        idle_end = timezone.now() + IDLE
        began = self.get(_BEGAN)
        return idle_end if began is None else min(idle_end, datetime.fromtimestamp(began, UTC) + LIFE)

    def get_expiry_age(self, **_more: Any) -> int:
        return max(0, int((self.get_expiry_date() - timezone.now()).total_seconds()))


def start_session(request: HttpRequest, human: Human, *, now: datetime) -> None:
    """Sign the human in, under a new session key: one known from before opens nothing."""
    # Django keeps the key where the same human signs in again.
    request.session.flush()
    login(request, human, backend=BACKEND)
    request.session[_BEGAN] = request.session[_SEEN] = int(now.timestamp())


def keep_session(request: HttpRequest, human: Human) -> None:
    """Let the session of this request go on though every session of the human has just ended."""
    request.session[HASH_SESSION_KEY] = human.get_session_auth_hash()


class KeepSessionMiddleware:
    """Moves the end of a session on when the person does something."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        now = int(timezone.now().timestamp())
        acted = isinstance(request.user, Human) and BACKGROUND_HEADER not in request.headers
        if acted and now - int(request.session.get(_SEEN, 0)) >= SEEN_SECONDS:
            request.session[_SEEN] = now
        return self.get_response(request)
