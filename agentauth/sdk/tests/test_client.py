import asyncio
import json
import time
from pathlib import Path

import httpx
import pytest

from agentauth import AgentAuthClient, Capability
from agentauth.protocol.capability import Action
from agentauth.protocol.errors import (
    InvalidGrantError,
    InvalidScopeError,
    ManifestError,
    TemporarilyUnavailableError,
)
from agentauth.sdk.client_cache import Cache, CachedValue
from agentauth.sdk.errors import GrantPendingError, NoGrantError
from agentauth.sdk.own_manifest import read_manifest
from agentauth.sdk.tests.fake_registry import (
    AGENT_ID,
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

# ---- registration and grants


def test_request_grant_registers_first_with_exactly_those_capabilities(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = registry.client(tmp_path, name="Research Assistant")
    asked = run(
        client.request_grant(SP_ID, [Capability.read("calendar"), Capability.write("files")])
    )
    (registration,) = registry.bodies("POST", "/v1/agents")
    manifest = read_manifest(registration["manifest"], registry=URL)
    assert manifest.capabilities == (Capability.read("calendar"), Capability.write("files"))
    assert manifest.name == "Research Assistant"
    assert registration.keys() == {"manifest"}
    assert (asked.grant_id, asked.status) == (GRANT_ID, "pending")
    assert asked.approval_url == f"{URL}/approvals/{GRANT_ID}/"
    assert registry.bodies("POST", "/v1/grants") == [
        {
            "service_provider": SP_ID,
            "capabilities": [
                {"type": "read", "resource": "calendar"},
                {"type": "write", "resource": "files"},
            ],
            "envelope": {},
            "reason": "",
        }
    ]


def test_request_beyond_the_manifest_raises_before_anything_is_sent(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = registered(registry, tmp_path)
    sent = len(registry.requests)
    with pytest.raises(ManifestError, match="write:calendar"):
        run(client.request_grant(SP_ID, [Capability.write("calendar")]))
    assert len(registry.requests) == sent


def test_a_later_request_within_the_manifest_is_fine_in_a_new_process_too(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registered(registry, tmp_path)
    run(registry.client(tmp_path).request_grant(SP_ID, [Capability.read("calendar/work")]))
    first, second = registry.bodies("POST", "/v1/agents")
    assert first == second


def test_the_key_is_kept_before_it_is_shown_to_the_registry(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    registry.script = lambda _request: httpx.ReadError("lost")
    with pytest.raises(TemporarilyUnavailableError):
        run(registry.client(tmp_path).register(CALENDAR))
    registry.script = lambda _request: None
    run(registry.client(tmp_path).register(CALENDAR))
    assert len({json.dumps(body) for body in registry.bodies("POST", "/v1/agents")}) == 1
    assert len({proof.jkt for proof in registry.proofs}) == 1


def test_an_unclaimed_agent_s_grant_carries_the_claim_code(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.agent_status = "unclaimed"
    asked = run(registry.client(tmp_path).request_grant(SP_ID, CALENDAR))
    assert asked.claim_code == "ABCD2345"
    # Logs show a repr, and the link alone must not be enough.
    assert "ABCD2345" not in repr(asked) + repr(run(registry.client(tmp_path).register()))


def test_an_enrolment_code_goes_along(registry: FakeRegistry, tmp_path: Path) -> None:
    run(registry.client(tmp_path, enrolment_code="code").register(CALENDAR))
    assert registry.bodies("POST", "/v1/agents")[0]["enrolment_code"] == "code"


def test_another_name_on_the_same_key_is_refused(registry: FakeRegistry, tmp_path: Path) -> None:
    registered(registry, tmp_path)
    with pytest.raises(ManifestError, match="another key file"):
        run(registry.client(tmp_path, name="Somebody else").register())


def test_registering_without_capabilities_is_refused(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match="at least one"):
        run(registry.client(tmp_path).register())
    assert registry.requests == []


def test_an_expired_manifest_is_signed_again_with_the_same_content(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = registered(registry, tmp_path)
    later = time.time() + 400 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    registry.now = int(later)
    run(client.register())
    old, new = (
        read_manifest(body["manifest"], registry=URL)
        for body in registry.bodies("POST", "/v1/agents")
    )
    assert old.content() == new.content()
    assert new.expires_at > later


def test_the_registry_s_refusal_is_raised_by_name(registry: FakeRegistry, tmp_path: Path) -> None:
    client = registered(registry, tmp_path)
    registry.script = lambda request: (
        error(400, "invalid_scope") if request.url.path == "/v1/grants" else None
    )
    with pytest.raises(InvalidScopeError):
        run(client.request_grant(SP_ID, CALENDAR))


def test_wait_for_decision_polls_until_it_is_decided(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    asked = run(client.request_grant(SP_ID, CALENDAR))
    answers = [grant("pending"), grant("pending"), grant("denied", deny_reason="No need.")]

    def script(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.startswith("/v1/grants/"):
            return None
        assert 0 < int(request.url.params["wait"]) <= 30
        return httpx.Response(200, json=answers.pop(0))

    registry.script = script
    decided = run(client.wait_for_decision(asked))
    assert (decided.status, decided.deny_reason) == ("denied", "No need.")
    # The interval that the registry asked for; polling faster is slow_down.
    assert len(slept) == 2
    assert all(0.9 < wait <= 1 for wait in slept)


def test_a_signature_that_is_asked_for_again_is_waited_for(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    page = f"{URL}/approvals/{GRANT_ID}/"
    answers = [
        grant("suspended", approval_url=page),
        grant("suspended", approval_url=page),
        grant(),
    ]
    registry.script = lambda _request: httpx.Response(200, json=answers.pop(0))
    assert run(client.wait_for_decision(GRANT_ID)).status == "approved"
    # Such a call is answered at once, so the client sets the interval.
    assert len(slept) == 2
    assert all(24 < wait <= 25 for wait in slept)


def test_a_suspension_without_a_page_is_not_waited_for(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant("suspended")]
    assert run(client.wait_for_decision(GRANT_ID)).status == "suspended"


# ---- tokens


def test_a_grant_that_is_usable_there_is_used(registry: FakeRegistry, tmp_path: Path) -> None:
    client = registered(registry, tmp_path)
    ids = [f"01900000-0000-7000-8000-00000000001{n}" for n in range(6)]
    other = {"id": AGENT_ID, "slug": "x", "name": "X", "audience": "https://x.example"}
    registry.grants = [
        grant(grant_id=ids[0], valid_until="2098-01-01T00:00:00Z"),
        grant(grant_id=ids[1], valid_until="2097-01-01T00:00:00Z"),
        grant(grant_id=ids[2], status="suspended"),
        grant(grant_id=ids[3], valid_until="2020-01-01T00:00:00Z"),
        grant(grant_id=ids[4], service_provider=other),
        grant(grant_id=ids[5], status="pending"),
    ]
    run(client.get_token("sp"))
    assert registry.bodies("POST", "/v1/tokens") == [{"grant_id": ids[0]}]


def test_where_no_known_grant_will_do_the_registry_is_asked_again(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    run(client.get_token(SP_ID))
    terms = {"capabilities": [Capability.write("files").to_json()], "envelope": {}}
    later = grant(grant_id=AGENT_ID[:-1] + "9", requested=terms, granted=terms)
    registry.grants.append(later)
    run(client.get_token(SP_ID, action=Action("write", "files/a")))
    assert registry.bodies("POST", "/v1/tokens")[-1] == {"grant_id": later["grant_id"]}


@pytest.mark.parametrize(("status", "code"), [("active", None), ("unclaimed", "ABCD2345")])
def test_a_pending_grant_raises_with_the_page_and_the_code(
    registry: FakeRegistry, tmp_path: Path, status: str, code: str | None
) -> None:
    registry.agent_status = status
    run(registry.client(tmp_path).request_grant(SP_ID, CALENDAR))
    with pytest.raises(GrantPendingError) as pending:
        run(registry.client(tmp_path).get_token(SP_ID))
    page = f"{URL}/claim/secret/?grant={GRANT_ID}" if code else f"{URL}/approvals/{GRANT_ID}/"
    assert pending.value.approval_url == page
    assert pending.value.claim_code == code
    # The message mentions the code if one is needed, and never contains it.
    assert ("claim code" in str(pending.value)) == bool(code)
    assert "ABCD2345" not in str(pending.value)
    assert registry.sent("POST", "/v1/tokens") == []


def test_a_pending_grant_named_by_id_raises_so_too(registry: FakeRegistry, tmp_path: Path) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant("pending")]
    registry.script = lambda r: error(400, "invalid_grant") if r.url.path == "/v1/tokens" else None
    with pytest.raises(GrantPendingError):
        run(client.get_token(SP_ID, GRANT_ID))
    registry.grants = [grant("revoked")]
    with pytest.raises(InvalidGrantError):
        run(client.get_token(SP_ID, GRANT_ID))


@pytest.mark.parametrize("has_another", [True, False])
def test_a_grant_that_is_to_be_signed_again_makes_way_for_a_usable_one(
    registry: FakeRegistry, client: AgentAuthClient, has_another: bool
) -> None:
    other = grant(grant_id=AGENT_ID[:-1] + "9", valid_until="2098-01-01T00:00:00Z")
    registry.grants += [other] if has_another else []
    refusals = [error(400, "invalid_grant"), error(400, "invalid_scope")]
    registry.script = lambda r: refusals.pop() if r.url.path == "/v1/tokens" and refusals else None
    with pytest.raises(InvalidScopeError):
        run(client.get_token(SP_ID))
    # The cached grants still have it as approved.
    registry.grants[0] = grant("suspended", approval_url=f"{URL}/approvals/{GRANT_ID}/")
    if has_another:
        run(client.get_token(SP_ID))
        assert registry.bodies("POST", "/v1/tokens")[-1] == {"grant_id": other["grant_id"]}
    else:
        with pytest.raises(GrantPendingError):
            run(client.get_token(SP_ID))


def test_a_grant_that_only_the_list_has_as_approved_is_tried_twice(
    registry: FakeRegistry, client: AgentAuthClient
) -> None:
    waits = grant("suspended", approval_url=f"{URL}/approvals/{GRANT_ID}/")

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.path == f"/v1/grants/{GRANT_ID}":
            return httpx.Response(200, json=waits)
        return error(400, "invalid_grant") if request.url.path == "/v1/tokens" else None

    registry.script = script
    with pytest.raises(GrantPendingError):
        run(client.get_token(SP_ID))
    assert len(registry.sent("POST", "/v1/tokens")) == 2


def test_a_denied_grant_says_why(registry: FakeRegistry, tmp_path: Path) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant("denied", deny_reason="Too much.")]
    with pytest.raises(NoGrantError, match=r"denied.*Too much\."):
        run(client.get_token(SP_ID))


def test_who_never_asked_has_no_grant_and_sends_nothing(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    with pytest.raises(NoGrantError, match="ensure_grant"):
        run(registry.client(tmp_path).get_token(SP_ID))
    assert registry.requests == []


def test_a_token_is_cached_and_renewed_before_it_ends(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    start = time.time()

    def token_at(seconds: float) -> str:
        monkeypatch.setattr(time, "time", lambda: start + seconds)
        registry.now = int(start + seconds)
        return str(run(client.get_token(SP_ID)))

    assert [token_at(0), token_at(800), token_at(839)] == ["token-1"] * 3
    assert [token_at(841), token_at(900)] == ["token-2"] * 2


@pytest.mark.parametrize("used", ["sp", SP_ID])
@pytest.mark.parametrize("forgotten", ["sp", SP_ID])
def test_a_token_is_cached_and_forgotten_by_id_and_by_slug(
    client: AgentAuthClient, used: str, forgotten: str
) -> None:
    assert run(client.get_token(used, GRANT_ID)) == "token-1"
    client.forget_tokens(forgotten)
    assert run(client.get_token(used, GRANT_ID)) == "token-2"
    for service in (SP_ID, "sp"):
        assert run(client.get_token(service)) == "token-2"
    client.forget_tokens(forgotten)
    assert run(client.get_token(used)) == "token-3"


def test_a_short_token_is_renewed_in_its_last_fifth(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.expires_in = 10
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start)
    run(client.get_token(SP_ID))
    monkeypatch.setattr(time, "time", lambda: start + 7.9)
    assert run(client.get_token(SP_ID)) == "token-1"
    monkeypatch.setattr(time, "time", lambda: start + 8.1)
    assert run(client.get_token(SP_ID)) == "token-2"


def test_old_token_bridges_an_outage_during_renewal_until_it_expires(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    start = time.time()
    run(client.get_token(SP_ID))
    registry.script = lambda r: (
        error(503, "temporarily_unavailable") if r.url.path == "/v1/tokens" else None
    )
    registry.now = int(start + 870)
    monkeypatch.setattr(time, "time", lambda: start + 870)
    assert run(client.get_token(SP_ID)) == "token-1"
    registry.now = int(start + 901)
    monkeypatch.setattr(time, "time", lambda: start + 901)
    with pytest.raises(TemporarilyUnavailableError):
        run(client.get_token(SP_ID))


def test_OG_12_callers_at_one_moment_share_one_issue() -> None:
    issued: list[CachedValue[str]] = []

    async def issue() -> CachedValue[str]:
        # Other tasks run while the registry works.
        await asyncio.sleep(0.01)
        issued.append(
            CachedValue(
                f"token-{len(issued) + 1}", renew_at=time.time() + 60, expires_at=time.time() + 60
            )
        )
        return issued[-1]

    async def many() -> list[str]:
        cache = Cache[str]()
        return list(await asyncio.gather(*(cache.get((SP_ID, GRANT_ID), issue) for _ in range(20))))

    assert set(run(many())) == {"token-1"}
    assert len(issued) == 1


def test_callers_at_one_moment_share_it_in_one_event_loop_after_another() -> None:
    cache = Cache[str]()

    async def ask() -> CachedValue[str]:
        await asyncio.sleep(0.01)
        return CachedValue("value", renew_at=0, expires_at=0)

    async def many() -> set[str]:
        return set(await asyncio.gather(*(cache.get((SP_ID,), ask) for _ in range(3))))

    assert [run(many()) for _ in range(2)] == [{"value"}] * 2


def test_the_known_grants_and_providers_carry_over_an_outage(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    start = time.time()
    assert run(client.authenticate_headers(SP_ID, "GET", "/v1/x"))
    registry.script = lambda _request: httpx.ConnectError("gone")
    monkeypatch.setattr(time, "time", lambda: start + 800)
    registry.now = int(start + 800)
    assert (
        run(client.authenticate_headers(SP_ID, "GET", "/v1/x"))["Authorization"] == "DPoP token-1"
    )


def test_a_decision_ends_the_cached_choice(registry: FakeRegistry, tmp_path: Path) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    run(client.get_token(SP_ID))
    later = grant(grant_id=AGENT_ID[:-1] + "9", decided_at="2026-06-01T00:00:00Z")
    registry.grants.append(later)
    run(client.wait_for_decision(later["grant_id"]))
    assert run(client.get_token(SP_ID)) == "token-2"
    assert registry.bodies("POST", "/v1/tokens")[-1] == {"grant_id": later["grant_id"]}
