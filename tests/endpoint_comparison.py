"""Sends one request to the view and to the lean endpoint, and compares answers and log entries."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest
import time_machine
from django.conf import settings

from agentauth.server.verifier_application import answered_by_django
from audit.models import Event, RefusalCount
from registry.tests.cast import basic
from tests import endpoint_modes, redis_servers
from verifier.endpoint_paths import INTROSPECT, VERIFY
from verifier.tests.scene import Scene

# A Sunday noon.
NOW = datetime(2027, 1, 10, 12, tzinfo=UTC)
FORM = "application/x-www-form-urlencoded"
# Different in each answer.
_OWN = re.compile(
    rb'(?<="decision_id":")[^"]+|(?<="confirmation_id":")[^"]+|(?<=/confirmations/)[^/]+'
)
# One endpoint answers this many requests before the other answers them.
_TOGETHER = 50
_OWN_LINES = {"x-request-id"}
_OWN_DATA = ("confirmation_id", "details")
# The fields of a decision's event, without those that name this one decision.
_SAID = (
    "kind", "actor_kind", "actor_id", "outcome", "reason", "agent_id", "human_id",
    "service_provider_id", "grant_id", "token_jti",
)  # fmt: skip


@dataclass
class Ask:
    """A request as the server receives it. `headers` are lines; a name may occur twice."""

    path: str
    body: bytes
    headers: list[tuple[str, str]]
    method: str = "POST"
    query: str = ""

    def lines(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), value.encode("latin-1")) for name, value in self.headers]


def ask(place: Scene, body: object, path: str = VERIFY, **changes: str | None) -> Ask:
    """A valid request with its length; `changes` replaces header lines, None removes one."""
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
    """Both endpoints, on one database at one moment: `clock` advances only when told to."""

    running: endpoint_modes.RunningEndpoint
    clock: "time_machine.Traveller"
    redis: bool
    seen: set[Any] = field(default_factory=set)

    def same(self, made: Ask | Callable[[], Ask], *, recorded: bool = True) -> Mapping[str, Any]:
        """Send the request to both (`made` may build one each) and compare; returns the answer,
        with its `status`.

        Not `recorded`: what they write is counted together, and only one of them writes it.
        """
        return self.all_same([("it", made)], recorded=recorded)[0]

    def all_same(
        self, asked: Iterable[tuple[str, Ask | Callable[[], Ask]]], *, recorded: bool = True
    ) -> list[Mapping[str, Any]]:
        """Send both many requests, each under its name, that do not affect one another."""
        answers: list[Mapping[str, Any]] = []
        differ: list[str] = []
        left = iter(asked)
        while some := list(islice(left, _TOGETHER)):
            self._said()
            views = [self._view(made() if callable(made) else made) for _, made in some]
            view_said = self._said()
            self.running.look()
            leans = [self._lean(made() if callable(made) else made) for _, made in some]
            lean_said = self._said()
            for (name, _), view, lean in zip(some, views, leans, strict=True):
                if lean != view:
                    differ.append(f"{name}: answered {lean} and not {view}")
                status, _, body = lean
                answers.append(
                    {**(json.loads(body) if body.startswith(b"{") else {}), "status": status}
                )
            if recorded and lean_said != view_said:
                more, less = lean_said - view_said, view_said - lean_said
                differ.append(f"{some[0][0]} to {some[-1][0]}: recorded {more} and not {less}")
        assert not differ, "\n".join(differ)
        return answers

    def at_view(self, asked: Ask) -> Any:
        """Ask the view alone: status, header lines and body."""
        return self._view(asked)

    def at_endpoint(self, asked: Ask) -> Any:
        """Ask the lean endpoint alone: status, header lines and body."""
        self.running.look()
        return self._lean(asked)

    def _view(self, asked: Ask) -> Any:
        scope = endpoint_modes.scope(asked.path, asked.query, asked.lines(), method=asked.method)
        answer = answered_by_django(scope, asked.body)
        lines = [(name.decode(), value.decode("latin-1")) for name, value in answer.headers]
        return _kept(answer.status, lines, answer.body)

    def _lean(self, asked: Ask) -> Any:
        answer = self.running.ask(
            asked.path, asked.query, asked.lines(), asked.body, method=asked.method
        )
        return _kept(answer.status_code, list(answer.headers.items()), answer.content)

    def _said(self) -> Counter[str]:
        """What the log gained since the last call.

        Refusal counters start again here: the clock stands still, so their minute never ends.
        """
        RefusalCount.objects.all().delete()
        if self.redis:
            endpoint_modes.drain_redis_to_log()
        new = set(Event.objects.values_list("pk", flat=True)) - self.seen
        self.seen |= new
        return Counter(
            json.dumps(_told(event), default=str) for event in Event.objects.filter(pk__in=new)
        )


@pytest.fixture(scope="module")
def served(
    django_db_setup: None, django_db_blocker: Any, redis_server: redis_servers.Server
) -> Iterator[endpoint_modes.RunningEndpoint]:
    with django_db_blocker.unblock(), endpoint_modes.run_endpoint(redis_server.url) as made:
        yield made


@pytest.fixture(params=["redis", pytest.param("database", marks=pytest.mark.long)])
def both(
    request: pytest.FixtureRequest,
    served: endpoint_modes.RunningEndpoint,
    redis_server: redis_servers.Server,
) -> Iterator[Both]:
    """Both endpoints with each replay cache, at `NOW`."""
    with pytest.MonkeyPatch.context() as patch, time_machine.travel(NOW, tick=False) as clock:
        patch.setattr(settings, "REDIS_URL", redis_server.url if request.param == "redis" else "")
        served.forget()
        with redis_server.client() as client:
            client.flushall()
        if request.param == "database":
            yield Both(served, clock, redis=False)
        else:
            with endpoint_modes.use_redis_replay_cache(redis_server.url):
                yield Both(served, clock, redis=True)


def _told(event: Event) -> list[Any]:
    # Keys are named by their digests, and each endpoint may be asked with a key of its own.
    own = {name: "-" for name in _OWN_DATA if name in event.data}
    return [getattr(event, name) for name in _SAID] + [event.data | own]


def _kept(status: int, lines: list[tuple[str, str]], body: bytes) -> Any:
    kept = [(name.lower(), value) for name, value in lines]
    return (
        status,
        sorted(each for each in kept if each[0] not in _OWN_LINES | {"content-length"}),
        _OWN.sub(b"-", body),
    )
