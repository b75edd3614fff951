"""Calls that wait for a person: approvals, step-ups, and links that change meanwhile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth import Capability
from agentauth.sdk import Action, AgentAuthClient, Confirmation, GrantPendingError, NoGrantError
from agentauth.sdk.registry_answers import Grant
from agentauth.sdk.tests.fake_registry import (
    CALENDAR,
    GRANT_ID,
    SP_ID,
    URL,
    FakeRegistry,
    error,
    grant,
    registered,
    run,
)

CONFIRMATION_ID = "01900000-0000-7000-8000-000000000004"
PAY = Capability.transact("payments", max_amount=("50.00", "EUR"))


def sp_calls(registry: FakeRegistry) -> list[httpx.Request]:
    return [request for request in registry.requests if request.url.host == "api.sp.example"]


def confirmation(status: str) -> httpx.Response:
    link = f"{URL}/confirmations/{CONFIRMATION_ID}/"
    return httpx.Response(
        200,
        json={"confirmation_id": CONFIRMATION_ID, "status": status, "approval_url": link},
    )


def step_up(**members: Any) -> httpx.Response:
    body = {
        "reason": "confirm_above",
        "confirmation_id": CONFIRMATION_ID,
        "approval_url": "https://evil.example/",
    }
    return error(403, "step_up_required", **(body | members))


Steps = list[httpx.Response]


def scripted(registry: FakeRegistry, answers: Steps, statuses: list[str]) -> None:
    """The service provider gives these answers; the confirmation has these states, in turn."""

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.host == "api.sp.example" and answers:
            return answers.pop(0)
        if request.url.path.startswith("/v1/confirmations/"):
            return confirmation(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        return None

    registry.script = script


# ---- decisions


def test_the_callback_gets_the_pending_grant_once(
    registry: FakeRegistry, client: AgentAuthClient, slept: list[float]
) -> None:
    registry.grants = [grant("pending")]
    polls = [0]

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.path == f"/v1/grants/{GRANT_ID}":
            polls[0] += 1
            if polls[0] == 4:
                registry.grants = [grant()]
        return None

    registry.script = script
    told: list[Grant] = []
    decided = run(client.wait_for_decision(GRANT_ID, on_pending=told.append))
    assert decided.status == "approved"
    assert [each.approval_url for each in told] == [f"{URL}/approvals/{GRANT_ID}/"]


def test_the_callback_may_be_a_coroutine_and_gets_each_new_link(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    links = ["one", "one", "two", "two"]

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != f"/v1/grants/{GRANT_ID}":
            return None
        if not links:
            return httpx.Response(200, json=grant())
        return httpx.Response(200, json=grant("pending", approval_url=f"{URL}/{links.pop(0)}/"))

    registry.script = script
    told: list[str | None] = []

    async def on_pending(pending: Grant) -> None:
        told.append(pending.approval_url)

    run(client.wait_for_decision(GRANT_ID, on_pending=on_pending))
    assert told == [f"{URL}/one/", f"{URL}/two/"]


def test_a_link_that_stays_costs_no_further_registration(
    registry: FakeRegistry, client: AgentAuthClient, slept: list[float]
) -> None:
    polls = [0]

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != f"/v1/grants/{GRANT_ID}":
            return None
        polls[0] += 1
        return httpx.Response(200, json=grant("pending" if polls[0] < 9 else "approved"))

    registry.script = script
    before = len(registry.sent("POST", "/v1/agents"))
    told: list[Grant] = []
    run(client.wait_for_decision(GRANT_ID, on_pending=told.append))
    assert len(registry.sent("POST", "/v1/agents")) == before + 1


def test_a_claim_link_that_stays_is_shown_once(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    registry.agent_status = "unclaimed"
    client = registered(registry, tmp_path)
    answers = [grant("pending", approval_url=f"{URL}/{name}/") for name in "ab"] + [grant()]
    registry.script = lambda request: (
        httpx.Response(200, json=answers.pop(0))
        if request.url.path == f"/v1/grants/{GRANT_ID}"
        else None
    )
    told: list[Grant] = []
    run(client.wait_for_decision(GRANT_ID, on_pending=told.append))
    assert len(told) == 1


def test_the_callback_of_an_unclaimed_agent_gets_the_code(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    registry.agent_status = "unclaimed"
    client = registered(registry, tmp_path)
    registry.grants = [grant("pending")]
    told: list[Grant] = []

    def decide(pending: Grant) -> None:
        told.append(pending)
        registry.grants = [grant()]

    run(client.wait_for_decision(GRANT_ID, on_pending=decide))
    assert [(each.claim_code, each.approval_url) for each in told] == [
        ("ABCD2345", f"{URL}/claim/secret/?grant={GRANT_ID}")
    ]


@pytest.mark.parametrize("status", ["denied", "expired", "withdrawn", "revoked"])
def test_the_wait_ends_with_any_decision(
    registry: FakeRegistry, client: AgentAuthClient, status: str
) -> None:
    registry.grants = [grant(status)]
    told: list[Grant] = []
    assert run(client.wait_for_decision(GRANT_ID, on_pending=told.append)).status == status
    assert told == []


# ---- step-up


def test_a_confirmed_payment_is_repeated_under_the_same_key(
    registry: FakeRegistry, client: AgentAuthClient, slept: list[float]
) -> None:
    scripted(registry, [step_up()], ["pending", "pending", "confirmed"])
    told: list[Confirmation] = []
    response = run(client.call(SP_ID, "POST", "/v1/pay", on_step_up=told.append))
    assert response.status_code == 200
    first, second = sp_calls(registry)
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert first.headers["DPoP"] != second.headers["DPoP"]
    # The registry's link, not the one that the service provider sent.
    assert [each.approval_url for each in told] == [f"{URL}/confirmations/{CONFIRMATION_ID}/"]


@pytest.mark.parametrize("status", ["denied", "expired", "consumed"])
def test_a_payment_that_was_not_confirmed_is_not_repeated(
    registry: FakeRegistry, client: AgentAuthClient, slept: list[float], status: str
) -> None:
    scripted(registry, [step_up()], ["pending", status])
    told: list[Confirmation] = []
    assert run(client.call(SP_ID, "POST", "/v1/pay", on_step_up=told.append)).status_code == 403
    assert len(sp_calls(registry)) == 1


@pytest.mark.parametrize("ids", [[CONFIRMATION_ID] * 9, [f"c-{n}" for n in range(9)]])
def test_one_call_asks_a_person_for_a_confirmation_once(
    registry: FakeRegistry, client: AgentAuthClient, slept: list[float], ids: list[str]
) -> None:
    states = ["pending", "confirmed"] * 9
    scripted(registry, [step_up(confirmation_id=each) for each in ids], states)
    told: list[Confirmation] = []
    answered = run(client.call(SP_ID, "POST", "/v1/pay", on_step_up=told.append))
    assert (answered.status_code, answered.json()["confirmation_id"]) == (403, ids[1])
    assert (len(told), len(sp_calls(registry))) == (1, 2)


def test_without_a_callback_the_step_up_is_the_answer(
    registry: FakeRegistry, client: AgentAuthClient
) -> None:
    scripted(registry, [step_up()], ["pending"])
    assert run(client.call(SP_ID, "POST", "/v1/pay")).status_code == 403
    assert registry.sent("GET", f"/v1/confirmations/{CONFIRMATION_ID}") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"confirmation_id": "../grants"},
        {"confirmation_id": 7},
        {"confirmation_id": None},
        {"reason": "confirmation_denied", "confirmation_id": None},
    ],
)
def test_a_step_up_that_names_no_confirmation_is_the_answer(
    registry: FakeRegistry, client: AgentAuthClient, wrong: dict[str, Any]
) -> None:
    scripted(registry, [step_up(**wrong)], ["pending"])
    told: list[Confirmation] = []
    try:
        status = run(client.call(SP_ID, "POST", "/v1/pay", on_step_up=told.append)).status_code
    except Exception as refused:  # noqa: BLE001 — an id that is no path segment
        assert "id or slug" in str(refused)  # noqa: PT017
    else:
        assert status == 403
    assert len(sp_calls(registry)) == 1
    assert told == []


def test_a_person_who_is_offline_is_waited_for(
    registry: FakeRegistry, client: AgentAuthClient, slept: list[float]
) -> None:
    offline = [step_up(reason="human_offline", confirmation_id=None) for _ in range(3)]
    scripted(registry, offline, ["pending"])
    told: list[Confirmation] = []
    assert run(client.call(SP_ID, "GET", "/v1/x", on_step_up=told.append)).status_code == 200
    assert [(each.status, each.approval_url) for each in told] == [("human_offline", f"{URL}/")]
    assert slept == [10, 10, 10]


# ---- asking during a call


def approving(registry: FakeRegistry, granted: dict[str, Any]) -> Callable[[Grant], None]:
    """A callback: the person approves as soon as the link is shown."""

    def approve(pending: Grant) -> None:
        asked = registry.grants[-1]["requested"]
        registry.grants[-1] = grant(
            grant_id=pending.grant_id, requested=asked, granted=granted or asked
        )

    return approve


def test_a_call_without_a_grant_asks_for_what_the_caller_named(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    response = run(
        client.call(
            SP_ID,
            "GET",
            "/v1/x",
            action=Action("read", "calendar/work"),
            ask_for=CALENDAR,
            on_pending=approving(registry, {}),
        )
    )
    assert response.status_code == 200
    assert len(registry.sent("POST", "/v1/grants")) == 1


def test_a_call_whose_scope_is_refused_asks_and_repeats(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registry.client(tmp_path)
    run(client.register([*CALENDAR, PAY]))
    registry.grants = [grant()]
    scripted(registry, [error(403, "insufficient_scope", reason="no_capability")], ["pending"])

    def approve(pending: Grant) -> None:
        asked = registry.grants[-1]["requested"]
        registry.grants[-1] = grant(
            grant_id=pending.grant_id,
            requested=asked,
            granted={"capabilities": [CALENDAR[0].to_json(), PAY.to_json()], "envelope": {}},
        )

    response = run(client.call(SP_ID, "POST", "/v1/pay", ask_for=[PAY], on_pending=approve))
    assert response.status_code == 200
    assert [body["capabilities"] for body in registry.bodies("POST", "/v1/grants")] == [
        [PAY.to_json()]
    ]


def test_a_refused_scope_is_the_answer_unless_the_caller_chose_to_ask(
    registry: FakeRegistry, client: AgentAuthClient
) -> None:
    scripted(registry, [error(403, "insufficient_scope")], ["pending"])
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 403
    assert registry.sent("POST", "/v1/grants") == []


def test_a_refused_scope_that_a_grant_covers_already_is_the_answer(
    registry: FakeRegistry, client: AgentAuthClient
) -> None:
    scripted(registry, [error(403, "insufficient_scope")], ["pending"])
    told: list[Grant] = []
    response = run(client.call(SP_ID, "GET", "/v1/x", ask_for=CALENDAR, on_pending=told.append))
    assert (response.status_code, told, len(sp_calls(registry))) == (403, [], 1)


def test_asking_without_a_callback_raises_with_the_link(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = registered(registry, tmp_path)
    with pytest.raises(GrantPendingError, match=f"{URL}/approvals/"):
        run(client.call(SP_ID, "GET", "/v1/x", ask_for=CALENDAR))


def test_an_approval_narrowed_below_the_need_is_explained(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    less = {"capabilities": [Capability.read("calendar/home").to_json()], "envelope": {}}
    with pytest.raises(NoGrantError, match="No grant covers read:calendar/work"):
        run(
            client.call(
                SP_ID,
                "GET",
                "/v1/x",
                action=Action("read", "calendar/work"),
                ask_for=CALENDAR,
                on_pending=approving(registry, less),
            )
        )
    assert len(registry.sent("POST", "/v1/grants")) == 1


@pytest.mark.parametrize("status", ["denied", "expired"])
def test_a_request_that_was_not_approved_ends_the_call(
    registry: FakeRegistry, tmp_path: Path, slept: list[float], status: str
) -> None:
    client = registered(registry, tmp_path)

    def decide(pending: Grant) -> None:
        registry.grants[-1] |= {"status": status, "granted": None}
        registry.grants[-1].pop("approval_url", None)

    with pytest.raises((NoGrantError, GrantPendingError)):
        run(client.call(SP_ID, "GET", "/v1/x", ask_for=CALENDAR, on_pending=decide))
    assert sp_calls(registry) == []


def test_a_pending_grant_is_waited_for_by_the_call(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant("pending")]
    response = run(client.call(SP_ID, "GET", "/v1/x", on_pending=approving(registry, {})))
    assert response.status_code == 200
