"""Refuses strangers before Django reads their requests, once there are too many of them (docs/protocol.md, "Rate limits").

Django takes 5 ms of CPU to refuse a caller. While the allowance of all strangers (`rate_limits.STRANGERS`) is used up, a
worker process of the web server looks at credentials itself: all that came in within 0.1 s by one query. Those that hold go
on to Django, which judges the request as always; the others are 429 here, and counted. Nothing is let in here.
"""

import io
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Final, TypeVar

from django.conf import settings
from django.core.handlers.wsgi import WSGIRequest
from django.db import close_old_connections, connections
from django.http import HttpRequest, HttpResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.security import SecurityMiddleware
from django.urls import URLPattern, get_resolver
from django.utils.http import http_date

from agentauth import metrics
from agentauth.http_errors import STATUSES, body_of, count_stranger, headers_of, record_strangers
from agentauth.middleware import REGISTRATION, SecurityHeadersMiddleware
from agentauth.presented import Call, jkt_of, pair_of, read_call, verifies
from agentauth.protocol.errors import (
    RateLimitedError,
    TemporarilyUnavailableError,
)
from audit.identifiers import new_id_text
from registry import rate_limits
from registry.refusals import METHODS
from registry.services.credentials import find_by_credentials
from registry.services.keys import callers_with
from verifier.endpoint import rendered
from verifier.services.connecting import use_own_connection

logger = logging.getLogger(__name__)
T = TypeVar("T")

# So long after the allowance was last found used up strangers are kept from Django (s). Meanwhile it grows: with less, each
# call that it allows would let in all that come before Django has refused one.
_PRESSED_SECONDS: Final = 10.0
# Between two queries (s): 10 a second, however many callers wait. A waiting caller has a connection, of which a process
# keeps 512, so no queue is ever full.
_PAUSE_SECONDS: Final = 0.1
# Credentials that held are not looked up again for so long (s). Django asks the database each time.
_KNOWN_SECONDS: Final = 60.0
_MOST_KNOWN: Final = 4_096
_REGISTERS: Final = re.compile(rb"POST [^ \r\n]*" + re.escape(REGISTRATION.encode()) + rb"[ ?]")


class Verdict(Enum):
    """What becomes of a request: Django's, 429, looked up first, or 503 where the database does not answer."""

    DJANGO = "django"
    REFUSED = "refused"
    WAITS = "waits"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Judged:
    """What becomes of the request of `whose`. `call` is None only where Django takes it."""

    whose: Any
    call: Call | None
    verdict: Verdict

    @property
    def waits(self) -> bool:
        """Whether its answer comes later, once its credentials have been looked up."""
        return self.verdict is Verdict.WAITS

    @property
    def is_refused(self) -> bool:
        """Whether `answer` is to be sent."""
        return self.verdict in {Verdict.REFUSED, Verdict.AWAY}

    @property
    def keeps(self) -> bool:
        """Whether the client keeps the connection."""
        return self.call is not None and self.call.keeps

    def answer(self, *, keeps: bool) -> bytes:
        """The whole answer to a request that is refused."""
        assert self.call is not None
        wait = (
            max(rate_limits.wait(*each) for each in _limits_of(self.call))
            if self.verdict is Verdict.REFUSED
            else 0.0
        )
        head, body = _rendered(self.verdict, int(wait))
        lines = (
            f"Date: {http_date()}\r\nConnection: {'keep-alive' if keeps else 'close'}\r\n"
            f"X-Request-Id: {new_id_text()}\r\n\r\n"
        )
        return head + lines.encode() + (b"" if self.call.method == "HEAD" else body)


class Strangers:
    """Judges who asks one process. Asked in its loop; looks up and writes down in a thread of its own.

    `told` hears in that thread of calls that waited, of many at once.
    """

    def __init__(self, told: Callable[[list[Judged]], None]) -> None:
        self._told = told
        self._pressed_until = float("-inf")
        self._known: dict[bytes, float] = {}
        self._waiting: list[tuple[Any, Call]] = []
        # Answered since it was last written down, and what of it is to be recorded now, by method and route.
        self._answered: Counter[tuple[str, str]] = Counter()
        self._due: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def concern(self, data: bytearray) -> bool:
        """Whether a request that begins so is to be judged; while there are few strangers, only registrations are."""
        if rate_limits.wait(rate_limits.STRANGERS, rate_limits.CREDENTIALS):
            self._pressed_until = time.monotonic() + _PRESSED_SECONDS
        return self._is_pressed() or _REGISTERS.match(data) is not None

    def _is_pressed(self) -> bool:
        return time.monotonic() < self._pressed_until

    def judge(self, whose: object, data: bytearray, head: int, end: int, *, peer: object) -> Judged:
        """What becomes of the request in `data[:end]`, as `read_call` takes it; where it waits, `told` hears the rest."""
        call = read_call(data, head, end, peer)
        if call is None:
            return Judged(whose, None, Verdict.DJANGO)
        verdict = self._verdict(call)
        if verdict is Verdict.WAITS:
            with self._lock:
                self._waiting.append((whose, call))
            self._call_thread()
        return Judged(whose, call, verdict)

    def _verdict(self, call: Call) -> Verdict:
        if call.registers:
            return (
                self._refuse(call)
                if any(rate_limits.wait(*each) for each in _limits_of(call))
                else Verdict.DJANGO
            )
        if not self._is_pressed():
            return Verdict.DJANGO
        if self._known.get(call.known_as, 0.0) <= time.monotonic():
            return Verdict.WAITS
        # A stranger may know an agent's public key.
        return Verdict.DJANGO if call.authorization or verifies(call) else self._refuse(call)

    def stop(self, seconds: float) -> None:
        """Write down who was refused and end the thread; waits `seconds` for it."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def look_up(self, calls: Sequence[Call]) -> list[Verdict]:
        """Judge the credentials of all these calls by two queries at most. Raises DatabaseError, InterfaceError."""
        pairs, keys = [pair_of(call) for call in calls], [jkt_of(call) for call in calls]
        found = find_by_credentials([pair for pair in pairs if pair]) if any(pairs) else []
        providers = iter(found)
        claimed = callers_with({key for key in keys if key}) if any(keys) else {}
        verdicts = []
        for call, pair, key in zip(calls, pairs, keys, strict=True):
            if pair:
                holds = next(providers) is not None
                known = holds
            else:
                holds = key in claimed and verifies(call)
                # Unclaimed agents are limited by their address, known or not.
                known = holds and claimed[key or ""]
                holds = known or (holds and not rate_limits.wait(rate_limits.ADDRESS, call.address))
            if known:
                self._remember(call)
            verdicts.append(Verdict.DJANGO if holds else self._refuse(call))
        return verdicts

    def write_down(self) -> None:
        """Add who was refused to the metrics, and to the log what is due there."""
        with self._lock:
            answered, self._answered = self._answered, Counter()
            due, self._due = self._due, Counter()
        for (method, route), count in answered.items():
            metrics.add_requests(
                method=method, route=f"/{route}", status=429, buckets={0: count}, seconds=0.0
            )
            metrics.ERRORS.labels(RateLimitedError.code, "").inc(count)
        for route, count in due.items():
            try:
                record_strangers(route, count)
            except TemporarilyUnavailableError:
                with self._lock:
                    self._due[route] += count

    def _refuse(self, call: Call) -> Verdict:
        # Names a caller chose would be counters without end.
        method = call.method if call.method in METHODS else "other"
        route = call.path[1:] if call.path in _plain_paths() else ""
        with self._lock:
            self._answered[method, route] += 1
            if count := count_stranger(f"{method} {route}"):
                self._due[f"{method} {route}"] += count
        self._call_thread()
        return Verdict.REFUSED

    def _remember(self, call: Call) -> None:
        self._known.pop(call.known_as, None)
        self._known[call.known_as] = time.monotonic() + _KNOWN_SECONDS
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]

    def _call_thread(self) -> None:
        if self._thread is None:
            # Made late: only in the process that serves, and only where strangers come.
            self._thread = threading.Thread(target=self._work, name="strangers", daemon=True)
            self._thread.start()
        self._wake.set()

    def _work(self) -> None:
        use_own_connection("agentauth-strangers")
        try:
            while not self._stopping.is_set():
                self._wake.wait()
                self._wake.clear()
                self._judge_waiting()
                self._try(self.write_down)
                self._stopping.wait(_PAUSE_SECONDS)
            self._try(self.write_down)
        finally:
            connections.close_all()

    def _judge_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        calls = [call for _, call in waiting]
        verdicts = self._try(lambda: self.look_up(calls)) or [Verdict.AWAY] * len(calls)
        self._told(
            [Judged(whose, call, verdict) for (whose, call), verdict in zip(waiting, verdicts, strict=True)]
        )

    @staticmethod
    def _try(act: Callable[[], T]) -> T | None:
        """What `act` makes; None where it failed, which is logged: the thread goes on."""
        try:
            close_old_connections()
            return act()
        except Exception:
            logger.exception("strangers could not be judged or counted")
            return None


def through_middleware(answer: HttpResponse, path: str) -> None:
    """Give an answer at `path` the headers that each answer has.

    Raises RuntimeError where a middleware answers by itself (with a redirect to https, say): its headers are not ours.
    """
    view: Callable[[HttpRequest], Any] = lambda _: answer  # noqa: E731 — a view in the middleware's eyes
    for middleware in (SecurityMiddleware, XFrameOptionsMiddleware, SecurityHeadersMiddleware):
        view = middleware(view)
    # As a call arrives: by https, or by the http of a proxy that is believed. Without it production redirects, and sends no
    # Strict-Transport-Security.
    asked = {"REQUEST_METHOD": "POST", "PATH_INFO": path, "HTTP_HOST": settings.ALLOWED_HOSTS[0]}
    made = view(WSGIRequest(asked | {"wsgi.url_scheme": "https", "wsgi.input": io.BytesIO()}))
    if made is not answer:
        raise RuntimeError(f"A middleware answers in place of {path}, with {made.status_code}.")


@lru_cache(maxsize=256)
def _rendered(verdict: Verdict, wait: int) -> tuple[bytes, bytes]:
    """Status line and standing headers, and the body, as Django's own answers have them."""
    error = rate_limits.limited(wait) if verdict is Verdict.REFUSED else TemporarilyUnavailableError()
    status = STATUSES[error.code]
    made = HttpResponse(
        rendered(body_of(error)),
        content_type="application/json",
        status=status,
        headers=headers_of(error, status, HttpRequest()),
    )
    through_middleware(made, REGISTRATION)
    lines = "".join(f"{name}: {value}\r\n" for name, value in made.items())
    return f"HTTP/1.1 {status} {made.reason_phrase}\r\n{lines}".encode(), made.content


@lru_cache(maxsize=1)
def _plain_paths() -> frozenset[str]:
    """Addresses without a parameter, which are routes by themselves. Any other is a path that a caller chose."""
    patterns = (each for each in get_resolver().url_patterns if isinstance(each, URLPattern))
    return frozenset(f"/{each.pattern}" for each in patterns if "<" not in str(each.pattern))


def _limits_of(call: Call) -> tuple[tuple[str, str], tuple[str, str]]:
    if call.registers:
        return (rate_limits.STRANGERS, rate_limits.REGISTRATIONS), (rate_limits.ENTRY, call.address)
    return (rate_limits.STRANGERS, rate_limits.CREDENTIALS), (rate_limits.ADDRESS, call.address)
