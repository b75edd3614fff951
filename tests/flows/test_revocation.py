"""Revoked tokens are refused by every server process within a second, under constant questions."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.actors import Scene, scenes
from tests.live import ROOT, LiveRegistry
from tests.production.registry import ProductionRegistry
from tests.time_limits import within

pytestmark = [pytest.mark.flow, pytest.mark.production]

READ = {"type": "read", "resource": "calendar"}
# docs/protocol.md section 7: no verify that begins later than this after the answer to a revocation
# accepts.
BOUND_SECONDS = 1.0
# Verifiers learn of a notified revocation this soon on an otherwise idle machine.
USUAL_SECONDS = 0.2
# Later questions, each on a new connection, so that any process may answer.
AGAIN = 5

Server = dict[str, Any]
Found = list[tuple[int, float, bool]]


def servers(registry: LiveRegistry) -> list[Server]:
    """The verifier as its clients reach it, and the web server, which answers verify too."""
    public = {"url": registry.url, "headers": {}}
    if not isinstance(registry, ProductionRegistry):
        return [public, public]
    # As the proxy would forward it.
    forwarded = {"Host": urlsplit(registry.url).netloc, "X-Forwarded-Proto": "https"}
    return [public, {"url": registry.web_url, "headers": forwarded}]


@contextlib.contextmanager
def asked_all_the_time(asked: list[tuple[Scene, str]]) -> Iterator[Found]:
    """Ask at each server about each token in a process; the list holds the findings at the end."""
    told = [
        {
            "client_id": place.client_id,
            "client_secret": place.client_secret,
            "audience": place.audience,
            "token": token,
            "pem": place.signer._key.to_pem().decode(),
        }
        for place, token in asked
    ]
    command = [sys.executable, "-m", "tests.flows.asking"]
    pipe = subprocess.PIPE
    found: Found = []
    where = servers(asked[0][0].registry)
    with contextlib.ExitStack() as stack:
        askers = [
            stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
            )
            for _ in where
        ]
        for asker, server in zip(askers, where, strict=True):
            # Also when the test fails: otherwise the end would wait for a process that was never
            # told to stop.
            stack.callback(asker.kill)
            say(asker, json.dumps(server | {"asked": told}))
        for asker in askers:
            assert heard(asker) == "asking\n"
        yield found
        for asker in askers:
            say(asker, "stop")
        for asker in askers:
            found += [tuple(each) for each in json.loads(heard(asker))]


def say(asker: "subprocess.Popen[str]", line: str) -> None:
    assert asker.stdin
    asker.stdin.write(f"{line}\n")
    asker.stdin.flush()


def heard(asker: "subprocess.Popen[str]") -> str:
    assert asker.stdout
    return str(asker.stdout.readline())


def by_provider(place: Scene, token: str) -> float:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = httpx.post(
        f"{place.registry.url}/v1/revoke",
        content=f"token={token}",
        headers=form,
        auth=(place.client_id, place.client_secret),
        timeout=30,
    )
    answered = time.monotonic()
    assert (answer.status_code, answer.content) == (200, b"")
    return answered


Act = Callable[[Scene, str], float]


def by_agent(method: str, path: str) -> Act:
    def act(place: Scene, _token: str) -> float:
        answer = place.api(method, path.format(grant=place.grant_id))
        answered = time.monotonic()
        assert answer.status_code == 204, answer.text
        return answered

    return act


def by_operator(line: str) -> Act:
    """What an administrator's button calls, in a separate process that reports when it was done."""

    def act(place: Scene, _token: str) -> float:
        script = (
            "import time; from django.utils import timezone; from audit.services import SYSTEM;"
            "from registry.models import *; from registry.services import humans, "
            "service_providers;"
            "said = {'actor': SYSTEM, 'now': timezone.now()};"
            + line.format(place=place)
            + "; print(time.monotonic())"
        )
        command = [sys.executable, "manage.py", "shell", "-v", "0", "-c", script]
        done = subprocess.run(
            command, cwd=ROOT, env=place.registry.env, check=True, stdout=subprocess.PIPE, text=True
        )
        return float(done.stdout)

    return act


LEVELS: dict[str, Act] = {
    "token": by_provider,
    "grant": by_agent("POST", "/v1/grants/{grant}/revoke"),
    "agent": by_agent("DELETE", "/v1/agents/me"),
    "human": by_operator(
        "humans.suspend_human(human=Human.objects.get(pk='{place.human_id}'), **said)"
    ),
    "service provider": by_operator(
        "service_providers.revoke_service_provider("
        "service_provider=ServiceProvider.objects.get(pk='{place.client_id}'), **said)"
    ),
}


def test_RV_1_RV_2_VB_12_each_revocation_ends_a_token_at_every_process(
    live_registry: LiveRegistry,
) -> None:
    """Each level within the bound; in the campaign, the median within the design's 99 % promise."""
    places = scenes(live_registry, [{"capabilities": [READ], "envelope": {}}] * len(LEVELS))
    asked = [(place, place.token()) for place in places]
    ended = []
    with asked_all_the_time(asked) as found:
        for act, (place, token) in zip(LEVELS.values(), asked, strict=True):
            before = time.monotonic()
            ended.append((before, act(place, token)))
        time.sleep(max(0.0, ended[-1][1] + BOUND_SECONDS - time.monotonic()))
    after = {}
    for which, (level, (before, answered)) in enumerate(zip(LEVELS, ended, strict=True)):
        mine = [(begun, yes) for each, begun, yes in found if each == which]
        # Two of each process: there was something to refuse, and it is refused once the bound is
        # over.
        assert sum(yes for begun, yes in mine if begun < before) >= 4, level
        late = [yes for begun, yes in mine if begun > answered + BOUND_SECONDS]
        assert (len(late) >= 4, sum(late)) == (True, 0), level
        after[level] = max(begun for begun, yes in mine if yes) - answered
    print({level: f"{1000 * seconds:.0f} ms" for level, seconds in after.items()})
    assert median(after.values()) <= within(USUAL_SECONDS), after
    stay_refused(asked)


def stay_refused(dead: list[tuple[Scene, str]]) -> None:
    """All later questions, on new connections, are refused: no process missed it."""
    for server in servers(dead[0][0].registry) * AGAIN:
        for place, token in dead:
            answer = httpx.post(
                f"{server['url']}/v1/verify",
                json=place.question(token, READ),
                headers=server["headers"],
                auth=(place.client_id, place.client_secret),
                timeout=30,
            )
            # A removed service provider gets 401; a process too busy to know answers 503.
            assert answer.status_code in {200, 401, 503}, answer.text
            assert not answer.json().get("valid"), answer.text
