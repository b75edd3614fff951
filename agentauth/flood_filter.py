"""Refuses strangers before Django reads their requests, if there are too many of them.

See docs/protocol.md, "Rate limits". Django takes 5 ms of CPU to refuse a caller. While the
allowance of all strangers (`caller_limits.STRANGERS`) is used up, a worker process of the web
server checks credentials itself, with one query for all calls of 0.1 s. Calls with valid ones go on
to Django, which judges them as always; the others get 429 here, and are counted. Nothing is
authorised here.
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
from django.utils.http import http_date

from agentauth.http_errors import STATUSES, body_of, count_stranger, headers_of, record_strangers
from agentauth.middleware import REGISTRATION
from agentauth.observability import metrics
from agentauth.protocol.errors import (
    RateLimitedError,
    TemporarilyUnavailableError,
)
from agentauth.raw_request_credentials import Call, jkt_of, pair_of, read_call, verifies
from agentauth.security_headers import SecurityHeadersMiddleware
from agentauth.urlconf_endpoints import endpoints
from audit.new_ids import new_id_text
from registry import caller_limits
from registry.refusal_recording import METHODS
from registry.services.agent_key_lookup import callers_with
from registry.services.provider_authentication import find_by_credentials
from verifier.asgi_endpoint import render_body
from verifier.services.short_timeout_connection import use_own_connection

logger = logging.getLogger(__name__)
T = TypeVar("T")

# How long strangers are kept from Django after the allowance was last found used up (s). It refills
# meanwhile: with less time, each call it allows would let in all that come before a refusal.
_PRESSED_SECONDS: Final = 10.0
# Between two queries (s): 10 a second, however many callers wait. Each waiting caller has a
# connection, of which a process keeps 512; that bounds the queue.
_PAUSE_SECONDS: Final = 0.1
# Valid credentials are not looked up again for this long (s). Django asks the database each time.
_KNOWN_SECONDS: Final = 60.0
_MOST_KNOWN: Final = 4_096
_REGISTERS: Final = re.compile(rb"POST [^ \r\n]*" + re.escape(REGISTRATION.encode()) + rb"[ ?]")


class Verdict(Enum):
    """What becomes of a request: to Django, 429, looked up first, or 503 (database away)."""

    DJANGO = "django"
    REFUSED = "refused"
    WAITS = "waits"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Judged:
    """What becomes of the request of `whose`. `call` is None only if Django takes it."""

    whose: Any
    call: Call | None
    verdict: Verdict

    @property
    def waits(self) -> bool:
        """Whether its answer comes later, once its credentials have been looked up."""
        return self.verdict is Verdict.WAITS

    @property
    def is_refused(self) -> bool:
        """Whether to send `answer`."""
        return self.verdict in {Verdict.REFUSED, Verdict.AWAY}

    @property
    def keeps(self) -> bool:
        """Whether the client keeps the connection."""
        return self.call is not None and self.call.keeps

    def answer(self, *, keeps: bool) -> bytes:
        """The whole HTTP answer that refuses the request."""
        assert self.call is not None
        wait = (
            max(caller_limits.wait(*each) for each in _limits_of(self.call))
            if self.verdict is Verdict.REFUSED
            else 0.0
        )
        head, body = _render_refusal(self.verdict, int(wait))
        lines = (
            f"Date: {http_date()}\r\nConnection: {'keep-alive' if keeps else 'close'}\r\n"
            f"X-Request-Id: {new_id_text()}\r\n\r\n"
        )
        return head + lines.encode() + (b"" if self.call.method == "HEAD" else body)


class PreauthFilter:
    """Judges the callers of one process. Called in its loop; looks up and records in a thread.

    `told` is called in that thread with the verdicts on calls that waited, many at once.
    """

    def __init__(self, told: Callable[[list[Judged]], None]) -> None:
        self._told = told
        self._pressed_until = float("-inf")
        self._known: dict[bytes, float] = {}
        self._waiting: list[tuple[Any, Call]] = []
        # Refusals since the last flush, and those to record in the log now, by method and route.
        self._answered: Counter[tuple[str, str]] = Counter()
        self._due: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def concern(self, data: bytearray) -> bool:
        """Whether a request that begins so must be judged; without pressure, only registrations."""
        if caller_limits.wait(caller_limits.STRANGERS, caller_limits.CREDENTIALS):
            self._pressed_until = time.monotonic() + _PRESSED_SECONDS
        return self._is_pressed() or _REGISTERS.match(data) is not None

    def _is_pressed(self) -> bool:
        return time.monotonic() < self._pressed_until

    def judge(self, whose: object, data: bytearray, head: int, end: int, *, peer: object) -> Judged:
        """Judge the request in `data[:end]` (see `read_call`). If it waits, `told` hears later."""
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
                if any(caller_limits.wait(*each) for each in _limits_of(call))
                else Verdict.DJANGO
            )
        if not self._is_pressed():
            return Verdict.DJANGO
        if self._known.get(call.known_as, 0.0) <= time.monotonic():
            return Verdict.WAITS
        # The key alone proves nothing, since a stranger may know it: check the proof.
        return Verdict.DJANGO if call.authorization or verifies(call) else self._refuse(call)

    def stop(self, seconds: float) -> None:
        """Record the last refusals and end the thread; wait `seconds` for it."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def look_up(self, calls: Sequence[Call]) -> list[Verdict]:
        """Judge the credentials of these calls with two queries at most.

        Raises DatabaseError, InterfaceError.
        """
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
                holds = known or (
                    holds and not caller_limits.wait(caller_limits.ADDRESS, call.address)
                )
            if known:
                self._remember(call)
            verdicts.append(Verdict.DJANGO if holds else self._refuse(call))
        return verdicts

    def write_down(self) -> None:
        """Add the refusals to the metrics, and those that are due to the log."""
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
        # Names that a caller chose would create counters without end.
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
            # Created late: only in the process that serves, and only if strangers come.
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
            [
                Judged(whose, call, verdict)
                for (whose, call), verdict in zip(waiting, verdicts, strict=True)
            ]
        )

    @staticmethod
    def _try(act: Callable[[], T]) -> T | None:
        """What `act` returns; None if it failed. That is logged, and the thread goes on."""
        try:
            close_old_connections()
            return act()
        except Exception:
            logger.exception(
                "callers without valid credentials could not be rate-limited or counted"
            )
            return None


def through_middleware(answer: HttpResponse, path: str) -> None:
    """Give an answer at `path` the headers that every answer has.

    Raises RuntimeError if a middleware answers by itself (with a redirect to https, say): its
    headers are not ours.
    """
    view: Callable[[HttpRequest], Any] = lambda _: answer  # noqa: E731 — acts as a view
    for middleware in (SecurityMiddleware, XFrameOptionsMiddleware, SecurityHeadersMiddleware):
        view = middleware(view)
    # As a call arrives: by https, or from a trusted proxy that says so. Otherwise production
    # redirects, and sends no Strict-Transport-Security.
    asked = {"REQUEST_METHOD": "POST", "PATH_INFO": path, "HTTP_HOST": settings.ALLOWED_HOSTS[0]}
    made = view(WSGIRequest(asked | {"wsgi.url_scheme": "https", "wsgi.input": io.BytesIO()}))
    if made is not answer:
        raise RuntimeError(
            f"A middleware answered in place of {path}, with status {made.status_code}."
        )


@lru_cache(maxsize=256)
def _render_refusal(verdict: Verdict, wait: int) -> tuple[bytes, bytes]:
    """Status line with constant headers, and the body, as in Django's own answers."""
    error = (
        caller_limits.limit_error(wait)
        if verdict is Verdict.REFUSED
        else TemporarilyUnavailableError()
    )
    status = STATUSES[error.code]
    made = HttpResponse(
        render_body(body_of(error)),
        content_type="application/json",
        status=status,
        headers=headers_of(error, status, HttpRequest()),
    )
    through_middleware(made, REGISTRATION)
    lines = "".join(f"{name}: {value}\r\n" for name, value in made.items())
    return f"HTTP/1.1 {status} {made.reason_phrase}\r\n{lines}".encode(), made.content


@lru_cache(maxsize=1)
def _plain_paths() -> frozenset[str]:
    """Paths without a parameter, which are routes themselves. Any other is chosen by a caller."""
    return frozenset(each.route for each in endpoints() if not each.parameters)


def _limits_of(call: Call) -> tuple[tuple[str, str], tuple[str, str]]:
    if call.registers:
        return (caller_limits.STRANGERS, caller_limits.REGISTRATIONS), (
            caller_limits.ENTRY,
            call.address,
        )
    return (caller_limits.STRANGERS, caller_limits.CREDENTIALS), (
        caller_limits.ADDRESS,
        call.address,
    )
