"""The cases that every integration passes. Each is the rule that its title states."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote

import httpx

from agentauth.sdk.refusal_responses import ALGORITHMS

from .conformance import AUDIENCE, OPEN, SECRET, Lines, Site

CASES: Final[dict[str, Callable[[Site], None]]] = {}
PAYMENT: Final = {"amount": {"value": "20.00", "currency": "EUR"}, "payee": "ACME"}
JSON: Final = {"Content_Type": "application/json"}


def case(title: str) -> Callable[[Callable[[Site], None]], Callable[[Site], None]]:
    def add(check: Callable[[Site], None]) -> Callable[[Site], None]:
        CASES[title] = check
        return check

    return add


def refused(answer: httpx.Response, status: int, error: str) -> dict[str, Any]:
    """The members of a refusal, whose form is the same in every integration."""
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    if status == 401:
        challenge = f'DPoP error="{error}", algs="{ALGORITHMS}"'
        assert answer.headers["WWW-Authenticate"] == challenge
    assert len(answer.content) <= 1024
    assert SECRET not in answer.text
    body: dict[str, Any] = answer.json()
    return body


@case("an allowed request is served")
def allowed(site: Site) -> None:
    answer = site.ask_as("good", "GET", "/calendar/work?day=1", Idempotency_Key="k")
    assert (answer.status_code, answer.text) == (200, f"{SECRET}: good work")
    assert site.registry.asked == [
        {
            "token": "good",
            "proof": "proof.1.x",
            "method": "GET",
            "url": f"{AUDIENCE}/calendar/work",
            "action": {"type": "read", "resource": "calendar/work", "arguments": {}},
            "idempotency_key": "k",
        }
    ]


@case("amount and arguments come from the body, which the view reads too")
def body(site: Site) -> None:
    answer = site.ask_as("good", "POST", "/payments", json.dumps(PAYMENT), **JSON)
    assert (answer.status_code, answer.text) == (200, f"{SECRET}: good ACME")
    assert site.registry.asked[0]["action"] == {
        "type": "transact",
        "resource": "payments",
        "amount": PAYMENT["amount"],
        "arguments": {"payee": "ACME"},
    }


def unreadable() -> Iterator[tuple[Any, dict[str, str]]]:
    yield json.dumps(PAYMENT), {"Content_Type": "application/x-www-form-urlencoded"}
    yield json.dumps(PAYMENT), {"Content_Type": "text/plain"}
    yield json.dumps(PAYMENT), JSON | {"Content_Encoding": "br"}
    yield (
        b'{"payee": "ACME", "payee": "EVIL", "amount": {"value": "1.00", "currency": "EUR"}}',
        JSON,
    )
    yield json.dumps({"payee": "ACME"}), JSON
    yield b"", JSON
    yield b"[]", JSON
    long = json.dumps(PAYMENT | {"note": "x" * 70_000}).encode()
    yield long, JSON
    # In pieces, so that no length announces it.
    yield iter([long[:40_000], long[40_000:]]), JSON


@case("a body that another reader could read differently is 400")
def odd_body(site: Site) -> None:
    for content, headers in unreadable():
        refused(
            site.ask_as("good", "POST", "/payments", content, **headers), 400, "invalid_request"
        )
    assert site.registry.asked == []


@case("a streaming upload reaches the view unread")
def upload(site: Site) -> None:
    """Longer than what may be read here, and in no form of ours."""
    answer = site.ask_as("good", "POST", "/upload?kind=photo", b"x" * 20 * 65_536)
    assert (answer.status_code, answer.text) == (200, f"{SECRET}: good {20 * 65_536}")
    assert site.registry.asked[0]["action"]["arguments"] == {"kind": "photo"}


@case("a coroutine is protected alike")
def coroutine(site: Site) -> None:
    refused(site.ask("GET", "/coroutine"), 401, "invalid_token")
    refused(site.ask_as("bad", "GET", "/coroutine"), 401, "invalid_token")
    answer = site.ask_as("good", "GET", "/coroutine")
    assert (answer.status_code, answer.text) == (200, f"{SECRET}: good")


# error, reason, further members, status, headers
REFUSALS: Final[tuple[tuple[str, str | None, dict[str, Any], int, dict[str, str]], ...]] = (
    ("invalid_token", "expired", {}, 401, {}),
    ("invalid_token", "binding", {}, 401, {}),
    ("invalid_dpop_proof", "replayed", {}, 401, {}),
    ("insufficient_scope", "no_capability", {}, 403, {}),
    (
        "insufficient_scope",
        "constraint",
        {"violations": [{"argument": "size", "operator": "max", "limit": 1}]},
        403,
        {},
    ),
    ("outside_time_window", None, {"retry_after": 60}, 403, {"Retry-After": "60"}),
    ("envelope_exceeded", "rate", {"retry_after": 6}, 429, {"Retry-After": "6"}),
    ("envelope_exceeded", "budget", {}, 429, {}),
    ("a_word_of_tomorrow", "x", {}, 403, {}),
)


@case("each refusal has its status, headers and body")
def refusals(site: Site) -> None:
    for error, reason, members, status, headers in REFUSALS:
        told = {"error": error, **({"reason": reason} if reason else {}), **members}
        site.registry.says = lambda _asked, told=told: {"valid": False, **told}
        answer = site.ask_as("good", "GET", "/calendar/work")
        shown = refused(answer, status, error)
        assert {name: shown.get(name) for name in told} == told
        assert answer.headers.get("Retry-After") == headers.get("Retry-After")


@case("step-up names the page where the person confirms")
def step_up(site: Site) -> None:
    told = {"approval_url": "https://registry.example/c/1/", "confirmation_id": "1"}
    site.registry.says = lambda _asked: {
        "valid": False,
        "error": "step_up_required",
        "reason": "confirm_above",
        **told,
    }
    answer = site.ask_as("good", "POST", "/payments", json.dumps(PAYMENT), **JSON)
    shown = refused(answer, 403, "step_up_required")
    assert {name: shown[name] for name in told} == told
    site.registry.says = None
    answer = site.ask_as("good", "POST", "/payments", json.dumps(PAYMENT), **JSON)
    assert answer.status_code == 200


@case("a nonce is passed on, with a refusal and with a yes")
def nonce(site: Site) -> None:
    site.registry.says = lambda _asked: {"valid": False, "error": "use_dpop_nonce", "nonce": "n1"}
    answer = site.ask_as("good", "GET", "/calendar/work")
    refused(answer, 401, "use_dpop_nonce")
    assert answer.headers["DPoP-Nonce"] == "n1"
    site.registry.says, site.registry.nonce = None, "n2"
    assert site.ask_as("good", "GET", "/calendar/work").headers["DPoP-Nonce"] == "n2"
    site.registry.nonce = None
    assert "DPoP-Nonce" not in site.ask_as("good", "GET", "/calendar/work").headers


@case("protected answers are `private, no-store`, failures too")
def no_store(site: Site) -> None:
    for path, status in (("/calendar/work", 200), ("/missing", 404), ("/broken", 500)):
        answer = site.ask_as("good", "GET", path)
        assert answer.status_code == status
        stated = {each.strip() for each in answer.headers["Cache-Control"].split(",")}
        assert stated == {"private", "no-store"}, path


@case("a forgotten route is closed")
def forgotten(site: Site) -> None:
    refused(site.ask("GET", "/undecorated"), 401, "invalid_token")
    refused(site.ask_as("bad", "GET", "/undecorated"), 401, "invalid_token")
    answer = site.ask_as("good", "GET", "/undecorated")
    assert (answer.status_code, answer.text) == (200, f"{SECRET}: good")
    assert "action" not in site.registry.asked[-1]


@case("a path without a route is closed")
def unknown(site: Site) -> None:
    refused(site.ask("GET", "/nothing-here"), 401, "invalid_token")
    refused(site.ask_as("bad", "GET", "/nothing-here"), 401, "invalid_token")


@case("an open route is open")
def opened(site: Site) -> None:
    answer = site.ask("GET", OPEN)
    assert answer.status_code == 200
    assert "DPoP-Nonce" not in answer.headers
    assert site.registry.asked == []


@case("without token or proof, and under `Bearer`, nothing is asked")
def without_credentials(site: Site) -> None:
    for method, path in (("GET", "/calendar/work"), ("POST", "/payments"), ("HEAD", "/plain")):
        proof = {"DPoP": "a.b.c"}
        for headers, error in (
            ({}, "invalid_token"),
            (proof, "invalid_token"),
            ({"Authorization": "DPoP good"}, "invalid_dpop_proof"),
            ({"Authorization": "Bearer good"} | proof, "invalid_token"),
        ):
            answer = site.ask(method, path, **headers)
            assert answer.status_code == 401, path
            assert error in answer.headers["WWW-Authenticate"]
    assert site.registry.asked == []


@case("the URL is the audience's, whatever `Host` and forwarded headers say")
def host(site: Site) -> None:
    for name, value in (
        ("Host", "evil.example"),
        ("Host", "api.sp.example:444"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Prefix", "/evil"),
        ("X-Original-URL", "/evil"),
        ("X-Rewrite-URL", "/evil"),
        ("X-Script-Name", "/evil"),
        ("Forwarded", "host=evil.example;proto=http"),
    ):
        site.raw("GET", "/calendar/work", [*site.signed(), (name, value)])
    urls = {each["url"] for each in site.registry.asked}
    assert urls == {f"{AUDIENCE}/calendar/work"}


@case("a header that comes twice is refused")
def doubled(site: Site) -> None:
    token, proof = site.signed()
    again: tuple[tuple[Lines, int, str], ...] = (
        ([token, proof, token], 400, "invalid_request"),
        ([token, proof, ("authorization", "Bearer good")], 400, "invalid_request"),
        ([token, proof, ("authorization", "DPoP other")], 400, "invalid_request"),
        ([token, proof, proof], 401, "invalid_dpop_proof"),
        ([token, proof, ("dpop", "x.y.z")], 401, "invalid_dpop_proof"),
        (
            [token, proof, ("Idempotency-Key", "a"), ("idempotency-key", "b")],
            400,
            "invalid_request",
        ),
    )
    for lines, status, error in again:
        refused(site.raw("GET", "/calendar/work", lines), status, error)
    assert site.registry.asked == []


@case("an encoded slash stays encoded")
def encoded(site: Site) -> None:
    answer = site.raw("GET", "/files/a%2Fb", site.signed())
    assert (answer.status_code, answer.text) == (200, f"{SECRET}: good")
    assert site.registry.asked[-1]["url"] == f"{AUDIENCE}/files/a%2Fb"
    # A parameter of one segment has no slash: the route does not match, or no capability covers it.
    site.registry.asked.clear()
    answer = site.raw("GET", "/calendar/a%2Fb", site.signed())
    for each in site.registry.asked:
        assert each["url"] == f"{AUDIENCE}/calendar/a%2Fb"
        assert each.get("action", {}).get("resource") in {None, "calendar/a%2Fb"}
    for target in ("/calendar/%77ork", "/calendar/work%3Fx=1", "/calendar//work"):
        site.registry.asked.clear()
        site.raw("GET", target, site.signed())
        for each in site.registry.asked:
            assert each["url"] == f"{AUDIENCE}{target}"


# One number, as a converter may read it.
SEVENS: Final = ("7", "007", "+7", "%207", "7%20", "7.0", "7e0", "0_7", "%D9%A7", "%EF%BC%97")


@case("a converted path parameter is judged as the value that the view gets")
def converted(site: Site) -> None:
    for spelling in SEVENS:
        site.registry.asked.clear()
        answer = site.raw("GET", f"/numbers/{spelling}", site.signed())
        if answer.status_code != 200:
            assert answer.status_code in {400, 404, 422}, spelling
            continue
        number = answer.text.removeprefix(f"{SECRET}: good ")
        [asked] = site.registry.asked
        assert asked["action"]["resource"] == f"numbers/{quote(number, safe='')}", spelling
        assert asked["url"] == f"{AUDIENCE}/numbers/{spelling}"
    assert site.ask_as("good", "GET", "/numbers/7").text == f"{SECRET}: good 7"


@case("a WebSocket upgrade is refused")
def websocket(site: Site) -> None:
    upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ]
    answer = site.raw("GET", "/calendar/work", [*site.signed(), *upgrade])
    said = refused(answer, 400, "invalid_request")
    assert "WebSocket" in said["error_description"]
    assert site.registry.asked == []


@case("if verify gives no decision, the answer is 503 and the view does not run")
def down(site: Site) -> None:
    site.registry.down = True
    for path in ("/calendar/work", "/plain"):
        answer = site.ask_as("good", "GET", path)
        refused(answer, 503, "temporarily_unavailable")
        assert answer.headers["Retry-After"] == "1"


@case("an operation that was allowed before is not done again")
def repeated(site: Site) -> None:
    site.registry.says = lambda asked: {
        "valid": True,
        "agent": {"id": asked["token"]},
        "repeated": True,
    }
    answer = site.ask_as("good", "POST", "/erase", Idempotency_Key="k")
    refused(answer, 409, "already_processed")
    answer = site.ask_as("good", "POST", "/kept", Idempotency_Key="k")
    assert (answer.status_code, answer.text) == (200, "stored")


@case("what is too long for any registry is refused without asking")
def too_long(site: Site) -> None:
    long = "a" * 8_200
    lines = [("Authorization", f"DPoP {long}"), ("DPoP", "a.b.c")]
    refused(site.raw("GET", "/calendar/work", lines), 401, "invalid_token")
    lines = [("Authorization", "DPoP good"), ("DPoP", long)]
    refused(site.raw("GET", "/calendar/work", lines), 401, "invalid_dpop_proof")
    assert site.registry.asked == []
