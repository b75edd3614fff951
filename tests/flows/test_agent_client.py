"""The agent's client in one life, at a live registry with a movable clock and a real API."""

import asyncio
import re
import textwrap
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import requests

from agentauth.protocol.errors import AgentAuthError, CooldownActiveError, ManifestError
from agentauth.sdk import Action, Confirmation, Grant, Money, NoGrantError, VerifierClient
from agentauth.sdk.httpx_auth import AgentAuth
from agentauth.sdk.refusal_responses import answer_for
from agentauth.sdk.requests_auth import RequestsAuth
from agentauth.sdk.sync_client import SyncAgentAuthClient
from tests.flows.clocked import PAY, PAYING, READ, READING, WRITE, Place, clocked_place
from tests.http_server import Quiet, serving
from tests.live import ROOT
from tests.time_limits import HANGS_SECONDS

pytestmark = [pytest.mark.flow, pytest.mark.faketime]

WRITING = Action("write", "files/report")
ACTIONS = {"/api/events": READING, "/api/files": WRITING, "/api/pay": PAYING}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with clocked_place(tmp_path_factory.mktemp("registry")) as made:
        yield made


class Api:
    """An API that asks verify about each request, and counts what it did."""

    def __init__(self, place: Place, url: str) -> None:
        self.place, self.url = place, url
        self.done: list[str] = []
        made = place.registry.manage(
            "create_service_provider",
            "Shop",
            "--audience",
            f"{self.url}/api",
            "--allow",
            *[capability.label for capability in (READ, WRITE, PAY)],
        )
        self.slug: str = made["slug"]
        self.verifier = VerifierClient(
            place.registry.url, made["client_id"], made["client_secret"], timeout=HANGS_SECONDS
        )


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[Api]:
    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            self.body()
            token = (self.headers.get("Authorization") or "").removeprefix("DPoP ")
            try:
                made.verifier.verify(
                    token=token,
                    proof=self.headers.get("DPoP") or "",
                    method=self.command,
                    url=made.url + self.path,
                    action=ACTIONS[self.path],
                    idempotency_key=self.headers.get("Idempotency-Key"),
                )
            except AgentAuthError as error:
                refused = answer_for(error)
                self.say(refused.status, refused.body, dict(refused.headers))
                return
            made.done.append(self.path)
            self.say(200, {"done": self.path})

        do_GET = do_POST = handle_any  # noqa: N815

    with serving(Handler) as url:
        made = Api(place, url)
        with made.verifier:
            yield made


@pytest.fixture
def started(place: Place, tmp_path: Path) -> Iterator[Callable[[], SyncAgentAuthClient]]:
    """Each call returns the same agent in a newly started process."""
    made: list[SyncAgentAuthClient] = []

    def start() -> SyncAgentAuthClient:
        made.append(SyncAgentAuthClient(place.registry.url, key_file=tmp_path / "agent.json"))
        return made[-1]

    yield start
    for client in made:
        client.close()


Start = Callable[[], SyncAgentAuthClient]


def approving(place: Place, **wish: Any) -> Callable[[Grant], None]:
    return lambda pending: place.decide("approve", pending.grant_id, **wish)


def ensured(client: SyncAgentAuthClient, api: Api, *capabilities: Any, **wish: Any) -> Grant:
    """The grant after the person approved it."""
    grant = client.ensure_grant(api.slug, capabilities)
    assert grant.approval_url
    decided = client.wait_for_decision(grant, on_pending=approving(api.place, **wish))
    assert decided.status == "approved"
    return decided


def test_an_agent_s_life_from_first_request_to_step_up(
    place: Place, api: Api, started: Start
) -> None:
    client = started()
    # A restart between request and decision: the request is found, and waited for.
    asked = client.ensure_grant(api.slug, [READ], reason="To plan the week.")
    client = started()
    resumed = client.ensure_grant(api.slug, [READ])
    assert (resumed.grant_id, resumed.claim_code) == (asked.grant_id, asked.claim_code)
    told: list[Grant] = []

    def on_pending(pending: Grant) -> None:
        told.append(pending)
        place.decide("approve", pending.grant_id)

    reading = client.wait_for_decision(resumed, on_pending=on_pending)
    assert [(each.claim_code, each.approval_url) for each in told] == [
        (resumed.claim_code, resumed.approval_url)
    ]
    assert client.ensure_grant(api.slug, [READ]).grant_id == reading.grant_id
    # The same call by each way to make it.
    assert client.call(api.slug, "GET", "/api/events", action=READING).status_code == 200
    auth = AgentAuth(client, api.slug, action=READING)
    with httpx.Client(auth=auth, trust_env=False, timeout=HANGS_SECONDS) as http:
        assert http.get(f"{api.url}/api/events").status_code == 200
    with requests.Session() as session:
        session.trust_env = False
        session.auth = RequestsAuth(client, api.slug, action=READING)
        assert session.get(f"{api.url}/api/events", timeout=HANGS_SECONDS).status_code == 200
    # Widening: only what is missing is asked for, and each call uses the grant that covers it.
    with pytest.raises(ManifestError, match="renew_manifest"):
        client.ensure_grant(api.slug, [READ, WRITE])
    client.renew_manifest([READ, WRITE, PAY])
    writing = ensured(client, api, READ, WRITE)
    assert writing.answer["granted"] == {"capabilities": [WRITE.to_json()], "envelope": {}}
    for path, action in (("/api/events", READING), ("/api/files", WRITING)):
        assert client.call(api.slug, "POST", path, action=action).status_code == 200
    assert client.ensure_grant(api.slug, [READ, WRITE]).status == "approved"
    # Rotation: both grants go on, in this process and in another one.
    other = started()
    client.rotate_key()
    for each in (client, other, started()):
        assert each.call(api.slug, "POST", "/api/files", action=WRITING).status_code == 200
    # Renewal: the manifest renews itself; the grants end, and only a person renews them.
    place.later(timedelta(days=200))
    with pytest.raises(NoGrantError, match="expired"):
        client.call(api.slug, "GET", "/api/events", action=READING)
    ensured(client, api, READ)
    assert client.call(api.slug, "GET", "/api/events", action=READING).status_code == 200
    kinds = [event["kind"] for event in client.audit_events()]
    assert kinds.count("registry.agent.manifest_renewed") >= 1


def test_a_denial_holds_until_the_agent_asks_again(place: Place, api: Api, started: Start) -> None:
    client = started()
    grant = client.ensure_grant(api.slug, [READ])
    decided = client.wait_for_decision(
        grant, on_pending=lambda each: place.decide("deny", each.grant_id, reason="Not now.")
    )
    assert decided.status == "denied"
    for each in (client, started()):
        with pytest.raises(NoGrantError, match=r"Not now\..*ask_again=True from") as denied:
            each.ensure_grant(api.slug, [READ])
        assert denied.value.fields["retry_after"] > 0
        with pytest.raises(CooldownActiveError, match="Ask again from"):
            each.ensure_grant(api.slug, [READ], ask_again=True)
    place.later(timedelta(minutes=61))
    with pytest.raises(NoGrantError, match="denied"):
        client.ensure_grant(api.slug, [READ])
    again = client.ensure_grant(api.slug, [READ], ask_again=True)
    assert again.status == "pending"
    client.wait_for_decision(again, on_pending=approving(place))
    assert client.call(api.slug, "GET", "/api/events", action=READING).status_code == 200


@pytest.mark.long
def test_what_the_person_left_out_is_not_asked_for_twice(
    place: Place, api: Api, started: Start
) -> None:
    client = started()
    decided = ensured(client, api, READ, WRITE, capabilities=[READ.to_json()])
    assert decided.narrowed
    with pytest.raises(NoGrantError, match="without write:files"):
        started().ensure_grant(api.slug, [READ, WRITE])
    assert client.ensure_grant(api.slug, [READ]).grant_id == decided.grant_id
    again = client.ensure_grant(api.slug, [READ, WRITE], ask_again=True)
    asked: Any = client.get_grant(again.grant_id).answer["requested"]
    assert asked["capabilities"] == [WRITE.to_json()]


def test_a_payment_above_the_threshold_is_made_once(place: Place, api: Api, started: Start) -> None:
    client = started()
    threshold = {"confirm_above": {"value": "10.00", "currency": "EUR"}}
    ensured(client, api, PAY, envelope=threshold)
    told: list[Confirmation] = []

    def confirm(pending: Confirmation) -> None:
        told.append(pending)
        place.decide("confirm", pending.confirmation_id)

    before = api.done.count("/api/pay")
    assert client.call(api.slug, "POST", "/api/pay", action=PAYING).status_code == 403
    paid = client.call(api.slug, "POST", "/api/pay", action=PAYING, on_step_up=confirm)
    assert (paid.status_code, api.done.count("/api/pay")) == (200, before + 1)
    assert [each.approval_url for each in told] == [
        f"{place.registry.url}/confirmations/{told[0].confirmation_id}/"
    ]
    auth = AgentAuth(client, api.slug, action=PAYING, on_step_up=confirm)
    with httpx.Client(auth=auth, trust_env=False, timeout=HANGS_SECONDS) as http:
        assert http.post(f"{api.url}/api/pay", json={"amount": "20.00"}).status_code == 200
    assert api.done.count("/api/pay") == before + 2
    dear = Action("transact", "payments", Money.of("60.00", "EUR"))
    with pytest.raises(NoGrantError, match=r"50\.00"):
        client.call(api.slug, "POST", "/api/pay", action=dear)


@pytest.mark.long
def test_a_paced_agent_is_never_refused_by_its_rate(place: Place, api: Api, started: Start) -> None:
    client = started()
    ensured(client, api, READ, envelope={"max_requests_per_minute": 600, "max_burst": 2})
    statuses = [
        client.call(api.slug, "GET", "/api/events", action=READING).status_code for _ in range(20)
    ]
    assert set(statuses) == {200}


@pytest.mark.long
def test_a_grant_revoked_in_mid_use_is_asked_for_again(
    place: Place, api: Api, started: Start
) -> None:
    client = started()
    first = ensured(client, api, READ)
    assert client.call(api.slug, "GET", "/api/events", action=READING).status_code == 200
    place.decide("revoke", first.grant_id)
    # The answer to the token in hand is final; then there is no grant to get another with.
    assert client.call(api.slug, "GET", "/api/events", action=READING).status_code == 401
    with pytest.raises(NoGrantError, match="revoked"):
        client.call(api.slug, "GET", "/api/events", action=READING)
    answer = client.call(
        api.slug,
        "GET",
        "/api/events",
        action=READING,
        ask_for=[READ],
        on_pending=approving(place),
    )
    assert answer.status_code == 200


def test_the_first_call_of_a_new_agent_asks_for_its_grant(
    place: Place, api: Api, started: Start
) -> None:
    """As also the next test's `call` does; without `ask_for`, the error says what to do."""
    client = started()
    with pytest.raises(NoGrantError, match="Call ensure_grant first"):
        client.call(api.slug, "GET", "/api/events", action=READING)
    signing = AgentAuth(
        client, api.slug, action=READING, ask_for=[READ], on_pending=approving(place)
    )
    with httpx.Client(auth=signing, trust_env=False, timeout=HANGS_SECONDS) as http:
        assert http.get(f"{api.url}/api/events").status_code == 200


@pytest.mark.long
def test_a_year_of_days_needs_a_person_only_when_a_grant_ended(
    place: Place, api: Api, started: Start
) -> None:
    """One process: the SDK gets tokens, renews the manifest, and asks for the grant again."""
    client = started()
    asked: list[str] = []

    def approve(pending: Grant) -> None:
        asked.append(pending.grant_id)
        place.decide("approve", pending.grant_id)

    for day in range(0, 400, 25):
        answer = client.call(
            api.slug, "GET", "/api/events", action=READING, ask_for=[READ], on_pending=approve
        )
        assert answer.status_code == 200, day
        place.later(timedelta(days=25))
    # A grant of 30 days serves two of the calls.
    assert len(asked) == len(set(asked)) == 8
    kinds = [event["kind"] for event in client.audit_events()]
    # On the first call after half of each manifest's year: days 200 and 400, the events' own call.
    assert kinds.count("registry.agent.manifest_renewed") == 2
    assert kinds.count("registry.agent.claimed") == 1


@pytest.mark.long
def test_of_two_grants_only_the_one_that_ended_is_asked_for_again(
    place: Place, api: Api, started: Start
) -> None:
    client = started()
    client.register([READ, WRITE])
    reading = ensured(client, api, READ)
    place.later(timedelta(days=20))
    writing = ensured(client, api, WRITE)
    place.later(timedelta(days=11))
    for each in (client, started()):
        assert each.call(api.slug, "POST", "/api/files", action=WRITING).status_code == 200
        with pytest.raises(NoGrantError, match="expired"):
            each.call(api.slug, "GET", "/api/events", action=READING)
    again = client.ensure_grant(api.slug, [READ, WRITE])
    assert again.grant_id not in {reading.grant_id, writing.grant_id}
    requested: Any = client.get_grant(again.grant_id).answer["requested"]
    assert requested["capabilities"] == [READ.to_json()]


def test_a_widened_manifest_is_renewed_half_a_year_later(place: Place, started: Start) -> None:
    client = started()
    client.register([READ])

    def renewals() -> int:
        kinds = [event["kind"] for event in started().audit_events()]
        return kinds.count("registry.agent.manifest_renewed")

    place.later(timedelta(days=150))
    client.renew_manifest([READ, WRITE])
    place.later(timedelta(days=180))
    assert renewals() == 0
    place.later(timedelta(days=10))
    assert renewals() == 1


@pytest.mark.long
def test_each_denial_in_a_row_makes_the_agent_wait_longer(
    place: Place, api: Api, started: Start
) -> None:
    client = started()
    client.ensure_grant(api.slug, [READ])
    for hours in (1, 4, 24, 24):
        asked = started().ensure_grant(api.slug, [READ], ask_again=True)
        place.decide("deny", asked.grant_id)
        place.later(timedelta(hours=hours, minutes=-1))
        with pytest.raises(CooldownActiveError, match="Ask again from"):
            started().ensure_grant(api.slug, [READ], ask_again=True)
        place.later(timedelta(minutes=2))


@pytest.mark.long
def test_a_confirmation_that_ended_unconfirmed_is_replaced(
    place: Place, api: Api, started: Start
) -> None:
    client = started()
    ensured(client, api, PAY, envelope={"confirm_above": {"value": "10.00", "currency": "EUR"}})
    before = api.done.count("/api/pay")

    def pay(**more: Any) -> httpx.Response:
        return started().call(
            api.slug, "POST", "/api/pay", action=PAYING, idempotency_key="rent", **more
        )

    first = pay().json()
    assert pay().json()["confirmation_id"] == first["confirmation_id"]
    place.later(timedelta(hours=2))
    told: list[Confirmation] = []

    def confirm(pending: Confirmation) -> None:
        told.append(pending)
        place.decide("confirm", pending.confirmation_id)

    assert pay(on_step_up=confirm).status_code == 200
    assert told[0].confirmation_id != first["confirmation_id"]
    assert api.done.count("/api/pay") == before + 1


def test_the_page_of_the_sdk_runs_as_printed(
    place: Place, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    page = (ROOT / "docs" / "sdk.md").read_text()
    source = "\n".join(re.findall(r"```python\n(.+?)```", page, re.DOTALL))
    for placeholder, real in (
        ("https://registry.example.com", place.registry.url),
        ("https://api.example.com", api.url),
        ('"my-api"', f'"{api.slug}"'),
    ):
        assert placeholder in source
        source = source.replace(placeholder, real)
    shown: list[str] = []

    def show(approval_url: str, _claim_code: str | None) -> None:
        shown.append(parse_qs(urlsplit(approval_url).query).get("grant", [approval_url])[0])
        place.decide("approve", shown[-1].rstrip("/").rsplit("/", 1)[-1])

    names: dict[str, Any] = {"print": show}
    page = f"async def page():\n{textwrap.indent(source, '    ')}    return locals()"
    exec(compile(page, "sdk.md", "exec"), names)  # noqa: S102 — our own page, run as a reader would
    made = asyncio.run(names["page"]())
    assert made["headers"].keys() == {"Authorization", "DPoP"}
    assert (made["grant"].status, made["wider"].status) == ("approved", "approved")
    assert len(shown) == 2
    assert {made[name].status_code for name in ("answer", "response")} == {200}
