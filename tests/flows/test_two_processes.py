"""Two processes of one agent that need a grant at the same moment: a person is asked once."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentauth import AgentAuthClient, Capability
from tests.live import ROOT, LiveRegistry

pytestmark = [pytest.mark.flow, pytest.mark.production]

READ, WRITE = Capability.read("calendar"), Capability.write("files")

# A process of the agent. Before its first request it says so and waits for a line, so that the
# other process has looked for a grant too and found none.
PROCESS = """
import json, sys
from agentauth import Capability
from agentauth.sdk.grants_and_tokens import AgentGrants
from agentauth.sdk.sync_client import SyncAgentAuthClient

url, key_file, service, needs = sys.argv[1:]
ask, waited = AgentGrants._ask, []

async def held(self, *given):
    if not waited:
        waited.append(True)
        print("asking", flush=True)
        sys.stdin.readline()
    return await ask(self, *given)

AgentGrants._ask = held
known = {"read": Capability.read("calendar"), "write": Capability.write("files")}
with SyncAgentAuthClient(url, key_file=key_file) as client:
    grant = client.ensure_grant(service, [known[each] for each in needs.split(",")])
    print(json.dumps([grant.grant_id, grant.status, grant.approval_url]), flush=True)
"""


class Asker:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def heard(self) -> str:
        assert self._process.stdout
        line: str = self._process.stdout.readline()
        return line.strip()

    def go_on(self) -> None:
        assert self._process.stdin
        print(file=self._process.stdin, flush=True)

    def result(self) -> list[str]:
        """The id, status and link of the grant that `ensure_grant` returned."""
        found: list[str] = json.loads(self.heard())
        return found


@pytest.fixture(scope="module")
def provider(live_registry: LiveRegistry) -> dict[str, str]:
    made: dict[str, str] = live_registry.manage(
        "create_service_provider",
        "Acme",
        "--audience",
        f"{live_registry.services}/two",
        "--allow",
        "read:calendar",
        "write:files",
    )
    return made


class Place:
    """An agent whose key two processes have, each in a store of its own."""

    def __init__(self, registry: LiveRegistry, slug: str, folder: Path) -> None:
        self.registry, self.slug, self.folder = registry, slug, folder
        self.client = AgentAuthClient(registry.url, key_file=folder / "first.json")
        asyncio.run(self.client.register([READ, WRITE]))
        shutil.copy(folder / "first.json", folder / "second.json")

    def claimed(self) -> None:
        """A person owns the agent, and has approved nothing that is still valid."""
        grant = asyncio.run(self.client.request_grant(self.slug, [READ]))
        self.registry.act("tests.decide", "approve", {"id": grant.grant_id})
        asyncio.run(self.client.revoke_grant(grant.grant_id))

    @contextmanager
    def both(self, first: str, second: str) -> Iterator[tuple[Asker, Asker]]:
        """Two processes that have looked for a grant, and found that they must ask for one."""
        pipe = subprocess.PIPE
        started = []
        for name, needs in (("first", first), ("second", second)):
            key_file = str(self.folder / f"{name}.json")
            command = [sys.executable, "-c", PROCESS, self.registry.url, key_file]
            started.append(
                subprocess.Popen(
                    [*command, self.slug, needs], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
                )
            )
        askers = (Asker(started[0]), Asker(started[1]))
        try:
            for each in askers:
                assert each.heard() == "asking"
            yield askers
        finally:
            for process in started:
                process.communicate(timeout=60)

    def waiting(self) -> dict[str, list[Any]]:
        """The capabilities of each request that a person is to decide, by its id."""
        return {
            each.grant_id: each.answer["requested"]["capabilities"]  # type: ignore[index]
            for each in asyncio.run(self.client.list_grants())
            if each.status == "pending"
        }


@pytest.fixture
def place(live_registry: LiveRegistry, provider: dict[str, str], tmp_path: Path) -> Place:
    return Place(live_registry, provider["slug"], tmp_path)


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_same_need_in_another_order_is_one_request(
    place: Place, together: bool, claimed: bool
) -> None:
    if claimed:
        place.claimed()
    with place.both("read,write", "write,read") as (first, second):
        first.go_on()
        found = [] if together else [first.result()]
        second.go_on()
        found += [each.result() for each in ((first, second) if together else (second,))]
        [waiting] = place.waiting()
        assert {each[0] for each in found} == {waiting}
        assert all(waiting in each[2] for each in found)


@pytest.mark.parametrize("claimed", [False, True])
def test_need_that_another_process_asked_for_is_not_asked_again(
    place: Place, claimed: bool
) -> None:
    if claimed:
        place.claimed()
    with place.both("read,write", "read") as (first, second):
        first.go_on()
        wider = first.result()
        second.go_on()
        # An unclaimed agent may have one request, so its second was refused; a claimed one's was
        # withdrawn.
        assert second.result()[:2] == wider[:2]
        assert list(place.waiting()) == [wider[0]]


def test_later_process_asks_only_for_what_the_first_did_not(place: Place) -> None:
    place.claimed()
    with place.both("read", "read,write") as (first, second):
        first.go_on()
        reading = first.result()
        second.go_on()
        writing = second.result()
        assert place.waiting() == {reading[0]: [READ.to_json()], writing[0]: [WRITE.to_json()]}


@pytest.mark.parametrize("attempt", range(2))
def test_overlapping_needs_at_one_moment_ask_for_nothing_twice(place: Place, attempt: int) -> None:
    place.claimed()
    with place.both("read", "read,write") as (first, second):
        for each in (second, first) if attempt % 2 else (first, second):
            each.go_on()
        found = {first.result()[0], second.result()[0]}
        waiting = place.waiting()
        assert found <= waiting.keys()
        asked = [each["type"] for capabilities in waiting.values() for each in capabilities]
        assert sorted(asked) == ["read", "write"]
