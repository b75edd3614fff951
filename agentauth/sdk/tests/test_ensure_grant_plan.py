"""`ensure_grant`: reuse by capability, ask for what is missing, and accept a person's no."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth import Capability
from agentauth.protocol.behavioural_envelope import Envelope
from agentauth.protocol.errors import CooldownActiveError, InvalidRequestError, ManifestError
from agentauth.sdk import Action, AgentAuthClient, NoGrantError
from agentauth.sdk.ensure_grant_plan import plan
from agentauth.sdk.registry_answers import Grant
from agentauth.sdk.tests.fake_registry import CALENDAR, SP_ID, URL, FakeRegistry, error, grant, run

READ = Capability.read("calendar")
WRITE = Capability.write("files")
BOTH = [READ, WRITE]
IDS = [f"01900000-0000-7000-8000-00000000001{digit}" for digit in range(9)]


def terms(*capabilities: Capability, **envelope: Any) -> dict[str, Any]:
    return {"capabilities": [each.to_json() for each in capabilities], "envelope": envelope}


def known(number: int, *capabilities: Capability, **members: Any) -> dict[str, Any]:
    """A grant as the registry answers it: requested and, unless told otherwise, granted."""
    asked = terms(*capabilities, **members.pop("envelope", {}))
    status = members.get("status", "approved")
    given = asked if status in {"approved", "suspended", "revoked"} else None
    return grant(grant_id=IDS[number], **{"requested": asked, "granted": given, **members})


def planned(
    grants: Sequence[dict[str, Any]],
    capabilities: Sequence[Capability],
    envelope: Envelope | None = None,
    *,
    ask_again: bool = False,
) -> tuple[str | None, tuple[Capability, ...]]:
    done = plan([Grant.of(each) for each in grants], capabilities, envelope, ask_again=ask_again)
    return (done.grant.grant_id if done.grant else None, done.missing)


@pytest.fixture
def client(registry: FakeRegistry, tmp_path: Path) -> AgentAuthClient:
    made = registry.client(tmp_path)
    run(made.register(BOTH))
    return made


def test_nothing_known_means_to_ask_for_all() -> None:
    assert planned([], BOTH) == (None, tuple(BOTH))


def test_a_grant_is_chosen_by_capability_not_by_age() -> None:
    older, newer = known(0, WRITE), known(1, READ)
    assert planned([older, newer], [WRITE]) == (IDS[0], ())


def test_a_wider_grant_covers_a_narrower_need() -> None:
    assert planned([known(0, READ)], [Capability.read("calendar/work")]) == (IDS[0], ())


def test_only_what_no_usable_grant_covers_is_missing() -> None:
    assert planned([known(0, READ)], BOTH) == (None, (WRITE,))


def test_two_grants_may_cover_the_need_together() -> None:
    pay = Capability.transact("payments", max_amount=("5.00", "EUR"))
    found = planned([known(0, READ, pay), known(1, WRITE)], [READ, WRITE, pay])
    assert found == (IDS[0], ())


def test_capabilities_of_two_grants_are_not_combined_into_one() -> None:
    dear = Capability.transact("payments", max_amount=("10.00", "EUR"))
    cheap = Capability.transact("payments", max_amount=("5.00", "EUR"))
    assert planned([known(0, cheap), known(1, cheap)], [dear]) == (None, (dear,))


@pytest.mark.parametrize("status", ["revoked", "expired", "withdrawn"])
def test_an_ended_grant_covers_nothing_and_may_be_asked_for(status: str) -> None:
    assert planned([known(0, READ, status=status)], [READ]) == (None, (READ,))


def test_a_grant_past_its_end_covers_nothing() -> None:
    over = known(0, READ, valid_until="2020-01-01T00:00:00Z")
    assert planned([over], [READ]) == (None, (READ,))


def test_a_pending_request_that_covers_the_need_is_resumed() -> None:
    assert planned([known(0, READ, WRITE, status="pending")], [READ]) == (IDS[0], ())


def test_what_a_pending_request_leaves_out_is_asked_for() -> None:
    assert planned([known(0, READ, status="pending")], BOTH) == (None, (WRITE,))


def test_a_grant_to_be_signed_again_is_resumed() -> None:
    link = {"status": "suspended", "approval_url": f"{URL}/approvals/x/"}
    assert planned([known(0, READ, **link)], [READ]) == (IDS[0], ())


@pytest.mark.parametrize("ask_again", [False, True])
def test_no_request_goes_around_a_person_s_suspension(ask_again: bool) -> None:
    with pytest.raises(NoGrantError, match="can resume it") as refused:
        planned([known(0, READ, status="suspended")], [READ], ask_again=ask_again)
    assert (refused.value.reason, refused.value.fields["grant_id"]) == ("suspended", IDS[0])


# ---- envelopes


def test_no_envelope_accepts_the_limits_of_any_grant() -> None:
    assert planned([known(0, READ, envelope={"max_uses": 1})], [READ]) == (IDS[0], ())


def test_a_grant_requested_with_tighter_limits_does_not_count() -> None:
    tight = known(0, READ, envelope={"max_uses": 1})
    assert planned([tight], [READ], Envelope(max_uses=5)) == (None, (READ,))
    assert planned([tight], [READ], Envelope()) == (None, (READ,))
    assert planned([tight], [READ], Envelope(max_uses=1)) == (IDS[0], ())


def test_limits_that_the_person_tightened_are_not_asked_for_again() -> None:
    asked = terms(READ, max_uses=5)
    narrowed = known(0, READ, requested=asked, granted=terms(READ, max_uses=2))
    assert planned([narrowed], [READ], Envelope(max_uses=5)) == (IDS[0], ())


# ---- a person's no


def test_a_denial_stands_until_the_caller_asks_again() -> None:
    denied = known(0, READ, status="denied", deny_reason="Not now.")
    with pytest.raises(NoGrantError, match=r"Not now\..*ask_again=True") as refused:
        planned([denied], [READ])
    assert refused.value.reason == "denied"
    assert planned([denied], [READ], ask_again=True) == (None, (READ,))


def test_a_denial_of_more_does_not_bar_a_request_for_less() -> None:
    assert planned([known(0, READ, WRITE, status="denied")], [READ]) == (None, (READ,))


def test_a_denial_bars_a_request_for_that_and_more() -> None:
    with pytest.raises(NoGrantError, match="read:calendar"):
        planned([known(0, READ, status="denied")], BOTH)


def test_an_approval_after_a_denial_takes_it_back() -> None:
    ended = known(1, READ, status="expired", granted=terms(READ))
    assert planned([known(0, READ, status="denied"), ended], [READ]) == (None, (READ,))


@pytest.mark.parametrize(("denials", "hours"), [(1, 1), (2, 4), (3, 24), (4, 24)])
def test_a_denial_says_when_to_ask_again(
    denials: int, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_767_225_600.0 + 60)
    rows = [
        known(number, READ, status="denied", decided_at="2026-01-01T00:00:00Z")
        for number in range(denials)
    ]
    with pytest.raises(NoGrantError, match="from 2026-01-0") as refused:
        planned(rows, [READ])
    assert refused.value.fields["retry_after"] == hours * 3600 - 60


def test_an_approval_resets_the_cooldown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_767_225_600.0 + 60)
    rows = [
        known(0, READ, status="denied", decided_at="2026-01-01T00:00:00Z"),
        known(1, WRITE, decided_at="2026-01-01T00:00:30Z"),
    ]
    with pytest.raises(NoGrantError) as refused:
        planned(rows, [READ])
    assert refused.value.fields["retry_after"] == 0


def test_what_the_person_left_out_is_not_asked_for_again() -> None:
    narrowed = known(0, *BOTH, granted=terms(READ))
    with pytest.raises(NoGrantError, match="without write:files") as refused:
        planned([narrowed], BOTH)
    assert refused.value.reason == "narrowed"
    assert planned([narrowed], BOTH, ask_again=True) == (None, (WRITE,))


# ---- through the client


def test_a_covered_need_is_not_asked_for(registry: FakeRegistry, client: AgentAuthClient) -> None:
    registry.grants = [known(0, READ)]
    found = run(client.ensure_grant(SP_ID, [READ]))
    assert (found.grant_id, found.status) == (IDS[0], "approved")
    assert registry.sent("POST", "/v1/grants") == []


def test_a_covered_need_costs_no_call_of_the_registry_after_the_first(
    registry: FakeRegistry, client: AgentAuthClient
) -> None:
    registry.grants = [known(0, READ)]
    run(client.ensure_grant(SP_ID, [READ]))
    sent = len(registry.requests)
    run(client.ensure_grant(SP_ID, [READ]))
    assert len(registry.requests) == sent


def test_only_the_missing_part_is_requested(
    registry: FakeRegistry, client: AgentAuthClient
) -> None:
    registry.grants = [known(0, READ)]
    asked = run(client.ensure_grant(SP_ID, BOTH, envelope={"max_uses": 3}, reason="To tidy."))
    # The grant in force has no limits, so it fits the need with limits.
    assert asked.status == "pending"
    (body,) = registry.bodies("POST", "/v1/grants")
    assert body["capabilities"] == [WRITE.to_json()]
    assert (body["envelope"], body["reason"]) == ({"max_uses": 3}, "To tidy.")


def test_a_restarted_agent_finds_its_pending_request(
    registry: FakeRegistry, client: AgentAuthClient, tmp_path: Path
) -> None:
    first = run(client.ensure_grant(SP_ID, [READ]))
    again = run(registry.client(tmp_path).ensure_grant(SP_ID, [READ]))
    assert (again.grant_id, again.approval_url) == (first.grant_id, first.approval_url)
    assert len(registry.sent("POST", "/v1/grants")) == 1


def test_a_resumed_request_of_an_unclaimed_agent_has_link_and_code(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.agent_status = "unclaimed"
    run(registry.client(tmp_path).ensure_grant(SP_ID, CALENDAR))
    again = run(registry.client(tmp_path).ensure_grant(SP_ID, CALENDAR))
    assert again.claim_code == "ABCD2345"
    assert again.approval_url == f"{URL}/claim/secret/?grant={again.grant_id}"


@pytest.mark.parametrize("ask", [AgentAuthClient.ensure_grant, AgentAuthClient.request_grant])
@pytest.mark.parametrize("is_registered", [True, False])
def test_calls_at_once_ask_a_person_once(
    registry: FakeRegistry, tmp_path: Path, ask: Any, is_registered: bool
) -> None:
    """Whether they name the service provider by its id or by its slug."""
    client = registry.client(tmp_path)
    if is_registered:
        run(client.register([READ]))

    async def at_once() -> list[Grant]:
        named = (SP_ID, "sp") * 10
        return list(await asyncio.gather(*(ask(client, each, [READ]) for each in named)))

    registry.interleaved(client)
    assert len({each.grant_id for each in run(at_once())}) == 1
    assert len(registry.sent("POST", "/v1/grants")) == 1


@pytest.mark.parametrize("decided", ["approved", "denied"])
def test_person_may_decide_between_our_request_and_its_withdrawal(
    registry: FakeRegistry, client: AgentAuthClient, decided: str
) -> None:
    """Another process asked first, so ours is withdrawn; a person has decided about it by then."""

    def script(request: httpx.Request) -> httpx.Response | None:
        if (request.method, request.url.path) == ("POST", "/v1/grants"):
            registry.grants.append(known(0, READ, status="pending"))
            registry.grants.append(known(1, READ, status="pending"))
            return httpx.Response(201, json=registry.grants[-1] | {"interval": 2})
        if request.url.path == f"/v1/grants/{IDS[1]}/withdraw":
            registry.grants[1] = known(1, READ, status=decided)
            return error(409, "invalid_state")
        return None

    registry.script = script
    found = run(client.ensure_grant(SP_ID, [READ]))
    assert len(registry.sent("POST", f"/v1/grants/{IDS[1]}/withdraw")) == 1
    assert len(registry.sent("POST", "/v1/grants")) == 1
    assert (found.grant_id, found.status) == (
        (IDS[1], "approved") if decided == "approved" else (IDS[0], "pending")
    )


def test_a_need_beyond_the_manifest_is_refused_before_it_is_asked(
    registry: FakeRegistry, client: AgentAuthClient
) -> None:
    with pytest.raises(ManifestError, match="renew_manifest"):
        run(client.ensure_grant(SP_ID, [Capability.delete("files")]))
    assert registry.sent("POST", "/v1/grants") == []


@pytest.mark.parametrize(("seconds", "year"), [(3_600, "20.."), (2**53 - 1, "9999")])
def test_a_cooldown_says_when_to_ask_again(
    registry: FakeRegistry, client: AgentAuthClient, seconds: int, year: str
) -> None:
    registry.script = lambda request: (
        error(429, "cooldown_active", {"Retry-After": "3600"}, retry_after=seconds)
        if (request.method, request.url.path) == ("POST", "/v1/grants")
        else None
    )
    with pytest.raises(CooldownActiveError, match=rf"Ask again from {year}-.*UTC") as cooling:
        run(client.ensure_grant(SP_ID, [READ]))
    assert cooling.value.fields["retry_after"] == seconds


def test_a_denial_at_the_end_of_time_can_be_told(
    registry: FakeRegistry, client: AgentAuthClient
) -> None:
    registry.grants = [grant("denied", decided_at="9999-12-31T23:59:59Z", granted=None)]
    with pytest.raises(NoGrantError, match="from 9999-12-31"):
        run(client.ensure_grant(SP_ID, CALENDAR))


@pytest.mark.parametrize(
    ("capabilities", "said"),
    [
        ("read:calendar", r'Write \[Capability.read\("calendar"\)\]'),
        (READ, r'Write \[Capability.read\("calendar"\)\], in brackets'),
        (["write:files/a"], r'capabilities\[0\].*Write Capability.write\("files/a"\)'),
        ([READ, {"type": "read"}], r"capabilities\[1\]: must be a Capability, not of type dict"),
        ([], "at least one"),
        (None, "NoneType"),
    ],
)
def test_a_mistaken_capability_is_explained_with_the_right_call(
    registry: FakeRegistry, client: AgentAuthClient, capabilities: Any, said: str
) -> None:
    sent = len(registry.requests)
    for ask in (client.ensure_grant, client.request_grant):
        with pytest.raises(InvalidRequestError, match=said):
            run(ask(SP_ID, capabilities))
    assert len(registry.requests) == sent


def test_a_mistaken_envelope_is_explained(client: AgentAuthClient) -> None:
    wrong: Any = "60 per minute"
    with pytest.raises(InvalidRequestError, match=r'Write \{"max_requests_per_minute": 60\}'):
        run(client.ensure_grant(SP_ID, [READ], envelope=wrong))


def test_a_mistaken_amount_is_explained() -> None:
    wrong: Any = "100 EUR"
    with pytest.raises(InvalidRequestError, match=r'Write \("100.00", "EUR"\)'):
        Capability.transact("payments", max_amount=wrong)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("read:calendar", r'Write Action\("read", "calendar"\)'),
        (READ, "must be an Action"),
    ],
)
def test_a_mistaken_action_is_explained(client: AgentAuthClient, action: Any, said: str) -> None:
    for act in (
        client.get_token(SP_ID, action=action),
        client.authenticate_headers(SP_ID, "GET", "/v1/x", action=action),
        client.call(SP_ID, "GET", "/v1/x", action=action),
    ):
        with pytest.raises(InvalidRequestError, match=said):
            run(act)


def test_a_text_for_an_action_s_amount_is_explained(client: AgentAuthClient) -> None:
    wrong: Any = "100 EUR"
    with pytest.raises(InvalidRequestError, match=r'Write Money.of\("100.00", "EUR"\)'):
        run(client.get_token(SP_ID, action=Action("transact", "payments", wrong)))
