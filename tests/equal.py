"""One request asked at the view and at the lean endpoint: what each of them answers, and what it writes into the log."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import time_machine

from agentauth.asgi import _answered_by_django as answered_by_django
from audit.models import Event
from registry.tests.cast import basic
from tests import through
from verifier.endpoint import Request
from verifier.tests.scene import Scene

VERIFY, BATCH, INTROSPECT = "/v1/verify", "/v1/verify/batch", "/v1/introspect"
FORM = "application/x-www-form-urlencoded"
# Made anew by each answer.
_OWN = re.compile(rb'(?<="decision_id":")[^"]+|(?<="confirmation_id":")[^"]+|(?<=/confirmations/)[^/]+')
_OWN_LINES = {"x-request-id"}
_OWN_DATA = ("confirmation_id", "idempotency_key_sha256")
# What a decision's event says, but what stands for this one alone.
_SAID = (
    "kind", "actor_kind", "actor_id", "outcome", "reason", "agent_id", "human_id", "service_provider_id", "grant_id", "token_jti",
)  # fmt: skip


@dataclass
class Ask:
    """A request as a server hands it on. `headers` are lines; a name may stand there twice."""

    path: str
    body: bytes
    headers: list[tuple[str, str]]
    method: str = "POST"
    query: str = ""

    def lines(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), value.encode("latin-1")) for name, value in self.headers]


def ask(place: Scene, body: object, path: str = VERIFY, **changes: str | None) -> Ask:
    """A request in order, with its length; `changes` puts header lines in the place of others, None leaves one out."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers: dict[str, str | None] = {
        "host": "localhost:8000",
        "content-type": FORM if path == INTROSPECT else "application/json",
        "content-length": str(len(data)),
        "authorization": basic(place.provider, place.secret)["Authorization"],
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    return Ask(path, data, [(name, value) for name, value in headers.items() if value is not None])


@dataclass
class Both:
    """The two, over the same database at the same moment: `clock` goes on only when it is told to."""

    running: through.Running
    clock: "time_machine.Traveller"
    redis: bool
    seen: set[object] = field(default_factory=set)

    def same(self, made: Ask | Callable[[], Ask], *, recorded: bool = True) -> Mapping[str, Any]:
        """Ask both, each its own if `made` makes them; what both answered, with `status` among its members.

        Not `recorded`: what they write is counted together, and one of them writes it.
        """
        make = made if callable(made) else lambda: made
        self._said()
        view = self._view(make())
        view_said = self._said()
        lean = self._lean(make())
        lean_said = self._said()
        assert lean == view, f"answered {lean} and not {view}"
        assert lean_said == view_said or not recorded, f"recorded {lean_said} and not {view_said}"
        status, _, body = lean
        return {**(json.loads(body) if body.startswith(b"{") else {}), "status": status}

    def _view(self, asked: Ask) -> Any:
        scope = through.scope(asked.path, asked.query, asked.lines(), method=asked.method)
        answer = answered_by_django(Request(scope, {}, asked.body, "view"))
        lines = [(name.decode(), value.decode("latin-1")) for name, value in answer.headers]
        return _kept(answer.status, lines, answer.body)

    def _lean(self, asked: Ask) -> Any:
        self.running.look()
        answer = self.running.ask(asked.path, asked.query, asked.lines(), asked.body, method=asked.method)
        return _kept(answer.status_code, list(answer.headers.items()), answer.content)

    def _said(self) -> list[Any]:
        """What the log says that it did not say before."""
        if self.redis:
            through.drained()
        new = [event for event in Event.objects.order_by("id") if event.pk not in self.seen]
        self.seen |= {event.pk for event in new}
        return sorted(json.dumps(_told(event), default=str) for event in new)


def _told(event: Event) -> list[Any]:
    # A key is named by its digest, and each of the two may be asked under a key of its own.
    own = {name: "-" for name in _OWN_DATA if name in event.data}
    return [getattr(event, name) for name in _SAID] + [event.data | own]


def _kept(status: int, lines: list[tuple[str, str]], body: bytes) -> Any:
    kept = [(name.lower(), value) for name, value in lines]
    return (
        status,
        sorted(each for each in kept if each[0] not in _OWN_LINES | {"content-length"}),
        _OWN.sub(b"-", body),
    )
