"""The view and the lean endpoint agree in status, header lines, bytes and what they log."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from random import Random
from typing import Any

import pytest
from django.utils import timezone

from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.token import sign_token
from registry.models import Agent, ServiceProvider, Token
from registry.services.agents import suspend_agent
from registry.services.grants import suspend_grant
from registry.services.humans import suspend_human
from registry.services.nonces import STEP_SECONDS
from registry.services.tokens import revoke_token
from tests.contract.scenarios import one_call_a_minute
from tests.endpoint_comparison import FORM, NOW, Ask, Both, ask
from tests.endpoint_comparison import both as both  # noqa: PLC0414 — a fixture
from tests.endpoint_comparison import served as served  # noqa: PLC0414 — a fixture
from tests.forging import changed_signature
from verifier.answers import _SENTENCES as SENTENCES
from verifier.endpoint_paths import BATCH, INTROSPECT, VERIFY
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import deny
from verifier.tests.scene import LOOK, PAY, READ, SYSTEM, Scene, key, pay, scene

pytestmark = [pytest.mark.redis, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

HOURS = {"days": ["mon"], "start": "09:00", "end": "17:00", "zone": "Europe/Berlin"}


# ---- every refusal of verify


def _other() -> LocalSigner:
    return LocalSigner(PrivateKey.generate())


def _forged(place: Scene) -> str:
    place.token()
    return sign_token(
        Token.objects.latest("issued_at").claims, LocalSigner(PrivateKey.generate(), kid="k")
    )


def _later(seconds: float) -> Callable[[Both, Scene], None]:
    return lambda both, _: both.clock.shift(seconds)


def _proof(**more: Any) -> Callable[[Scene, str], str]:
    return lambda place, token: place.proof(token, **more)


def _after(act: Callable[[Scene], object]) -> Callable[[Both, Scene], object]:
    return lambda _, place: act(place)


def _denied(both: Both, place: Scene, operation: str) -> None:
    place.pay("150.00", operation)
    row = Confirmation.objects.get(grant=place.grant)
    deny(confirmation=row, human=place.human, actor=SYSTEM, now=timezone.now())


class Refused:
    """How to cause a refusal: the grant's `envelope`, steps after the token issue, the request."""

    def __init__(
        self,
        *,
        envelope: dict[str, Any] | None = None,
        token: Callable[[Scene], str] | None = None,
        first: Callable[[Both, Scene], object] = lambda *_: None,
        proof: Callable[[Scene, str], str | None] = lambda place, token: place.proof(token),
        action: dict[str, Any] | None = LOOK,
        once: bool = False,
        used: dict[str, Any] | None = None,
        denied: bool = False,
        **more: Any,
    ) -> None:
        self.envelope, self.token, self.first, self.proof = envelope or {}, token, first, proof
        self.action, self.once, self.used, self.denied, self.more = action, once, used, denied, more

    def asks(self, both: Both) -> tuple[Scene, Callable[[], dict[str, Any]]]:
        place = scene(READ, PAY, **self.envelope)
        token = self.token(place) if self.token else place.token()
        transacts = self.action is not None and self.action["type"] == "transact"
        named = {"idempotency_key": key()} if transacts else {}
        if self.used is not None:
            assert place.ask(self.used, **named)["valid"]
        if self.denied:
            _denied(both, place, named["idempotency_key"])
        self.first(both, place)

        def make() -> dict[str, Any]:
            # A used or denied operation is asked about again; any other is new each time.
            again = (
                named if self.used or self.denied or not transacts else {"idempotency_key": key()}
            )
            body = place.body(self.action, token=token, proof=self.proof(place, token), **again)
            return {name: value for name, value in (body | self.more).items() if value is not None}

        made = make()
        if self.once:
            assert place.ask(**made)["valid"]
            return place, lambda: made
        return place, make


HUNDRED = {"value": "100.00", "currency": "EUR"}
BUDGET = {"value": "200.00", "currency": "EUR", "period": "day", "zone": "UTC"}
REFUSALS: dict[tuple[str, str | None], Refused] = {
    ("invalid_token", "malformed"): Refused(token=lambda _: "a.b.c"),
    ("invalid_token", "unknown"): Refused(token=_forged),
    ("invalid_token", "expired"): Refused(first=_later(901)),
    ("invalid_token", "not_yet_valid"): Refused(first=_later(-13)),
    ("invalid_token", "revoked"): Refused(
        first=_after(
            lambda p: revoke_token(
                jti=Token.objects.get(grant=p.grant).jti, actor=SYSTEM, now=timezone.now()
            )
        )
    ),
    ("invalid_token", "grant_inactive"): Refused(
        first=_after(lambda p: suspend_grant(grant=p.grant, actor=SYSTEM, now=timezone.now()))
    ),
    ("invalid_token", "agent_inactive"): Refused(
        first=_after(lambda p: suspend_agent(agent=p.agent, actor=SYSTEM, now=timezone.now()))
    ),
    ("invalid_token", "human_inactive"): Refused(
        first=_after(lambda p: suspend_human(human=p.human, actor=SYSTEM, now=timezone.now()))
    ),
    ("invalid_token", "binding"): Refused(proof=lambda p, token: p.proof(token, signer=_other())),
    ("invalid_dpop_proof", "malformed"): Refused(proof=lambda *_: None),
    ("invalid_dpop_proof", "signature"): Refused(
        proof=lambda p, token: changed_signature(p.proof(token))
    ),
    ("invalid_dpop_proof", "method"): Refused(proof=_proof(method="GET")),
    ("invalid_dpop_proof", "url"): Refused(url="https://elsewhere.example/"),
    ("invalid_dpop_proof", "iat"): Refused(proof=_proof(iat=int(NOW.timestamp()) - 61)),
    ("invalid_dpop_proof", "ath"): Refused(proof=lambda p, _: p.proof("another")),
    ("invalid_dpop_proof", "replayed"): Refused(once=True),
    ("use_dpop_nonce", None): Refused(proof=_proof(nonce="stale")),
    ("insufficient_scope", "no_capability"): Refused(
        action={"type": "write", "resource": "calendar"}
    ),
    ("insufficient_scope", "constraint"): Refused(action=pay("501.00")),
    ("envelope_exceeded", "rate"): Refused(
        envelope={"max_requests_per_minute": 7, "max_burst": 1}, used=LOOK
    ),
    ("envelope_exceeded", "budget"): Refused(envelope={"budgets": [BUDGET]}, action=pay("201.00")),
    ("envelope_exceeded", "max_uses"): Refused(envelope={"max_uses": 1}, used=LOOK),
    ("outside_time_window", None): Refused(envelope={"allowed_time_windows": [HOURS]}),
    ("step_up_required", "confirm_above"): Refused(
        envelope={"confirm_above": HUNDRED}, action=pay("150.00")
    ),
    ("step_up_required", "confirmation_denied"): Refused(
        envelope={"confirm_above": HUNDRED}, action=pay("150.00"), denied=True
    ),
    ("step_up_required", "human_offline"): Refused(envelope={"requires_human_online": True}),
    ("idempotency_mismatch", None): Refused(used=pay("1.00"), action=pay("2.00")),
}


def test_each_refusal_has_its_scenario() -> None:
    assert REFUSALS.keys() == SENTENCES.keys()


def asking(place: Scene, make: Callable[[], dict[str, Any]], path: str) -> Ask:
    """A request, alone or in a batch."""
    return ask(place, make() if path == VERIFY else {"requests": [make(), 7, {}]}, path)


def test_every_refusal_is_the_same(both: Both) -> None:
    for word, scenario in REFUSALS.items():
        for path in (VERIFY, BATCH):
            both.clock.move_to(NOW)
            place, make = scenario.asks(both)
            answer = both.same(partial(asking, place, make, path))
            one = answer if path == VERIFY else answer["results"][0]
            assert (one["error"], one.get("reason")) == word


# ---- what is good, and what is no request


def test_what_is_allowed_is_the_same(both: Both) -> None:
    limited = scene(READ, PAY, max_requests_per_minute=60, budgets=[BUDGET], max_uses=90)
    plain = scene(READ, PAY)
    rehearsed: list[dict[str, Any]] = [
        {"action": None},
        {"action": LOOK, "dry_run": True},
        {"action": pay("1.00"), "dry_run": True, "idempotency_key": "k"},
    ]
    # Where a limit counts, each answer changes the next, so only requests that count nothing.
    for place, questions in ((limited, rehearsed), (plain, [*rehearsed, {"action": LOOK}])):
        token = place.token()
        for question in questions:
            for path in (VERIFY, BATCH):
                answer = both.same(
                    partial(asking, place, partial(place.body, token=token, **question), path)
                )
                assert (answer if path == VERIFY else answer["results"][0])["valid"], answer


def test_what_was_answered_before_is_the_same(both: Both) -> None:
    """A repeated operation, a repeated call, and another body under its key."""
    place = scene(READ, PAY)
    token = place.token()
    make = partial(place.body, pay("1.00"), token=token, idempotency_key="mine")
    assert place.ask(**make())["valid"]
    assert both.same(partial(asking, place, make, VERIFY))["repeated"]
    asked = ask(place, place.body(LOOK), idempotency_key="call-1")
    both.running.look()
    assert both.running.ask(asked.path, "", asked.lines(), asked.body).json()["valid"]
    assert both.same(asked)["valid"]
    # Money is decided in the database, which finds a call by its name.
    paid, other = (ask(place, make(), idempotency_key="call-2") for _ in range(2))
    assert both.running.ask(paid.path, "", paid.lines(), paid.body).json()["valid"]
    assert both.same(other)["error"] == "idempotency_mismatch"


def test_nonces_are_the_same(both: Both) -> None:
    """A nonce is demanded if the provider requires it; a yes carries the next one near the end."""
    place = scene(READ)
    ServiceProvider.objects.filter(pk=place.provider.pk).update(require_nonce=True)
    both.running.forget()
    token = place.token()

    def asks(path: str, **more: Any) -> Mapping[str, Any]:
        answer = both.same(
            partial(
                asking,
                place,
                lambda: place.body(LOOK, token=token, proof=place.proof(token, **more)),
                path,
            )
        )
        one: Mapping[str, Any] = answer if path == VERIFY else answer["results"][0]
        return one

    wanted = asks(VERIFY)
    assert (wanted["error"], wanted["nonce"]) == ("use_dpop_nonce", asks(BATCH)["nonce"])
    for path in (VERIFY, BATCH):
        assert "nonce" not in asks(path, nonce=wanted["nonce"])
    both.clock.shift(STEP_SECONDS)
    for path in (VERIFY, BATCH):
        answer = asks(path, nonce=wanted["nonce"])
        assert answer["valid"]
        assert answer["nonce"] != wanted["nonce"]


def test_texts_are_written_the_same(both: Both) -> None:
    place = scene(READ)
    Agent.objects.filter(pk=place.agent.pk).update(name='a\u2028b\u2029\u00e9</"\\\x7f\U0001f600')
    both.running.forget()
    make = partial(place.body, LOOK, token=place.token())
    for path in (VERIFY, BATCH):
        both.same(partial(asking, place, make, path))


def test_introspection_is_the_same(both: Both) -> None:
    place, stranger = scene(READ), scene(PAY, max_uses=3)
    token, forged = place.token(), _forged(place)
    active = {token: True, forged: False, stranger.token(): False, "x": False, token + "x": False}
    for text, is_active in active.items():
        assert both.same(ask(place, f"token={text}".encode(), INTROSPECT))["active"] is is_active
    assert both.same(
        ask(place, f"token={token}&token_type_hint=access_token".encode(), INTROSPECT)
    )["active"]
    for body in (
        b"",
        b"token=",
        b"token=a&token=b",
        b"tok",
        b"token=%ED%A0%80",
        b"token=%00",
        b"\xff=\xfe",
    ):
        both.same(ask(place, body, INTROSPECT))
    both.clock.shift(901)
    assert both.same(ask(place, f"token={token}".encode(), INTROSPECT))["active"] is False
    both.clock.shift(-901)
    revoke_token(
        jti=Token.objects.filter(grant=place.grant).earliest("issued_at", "id").jti,
        actor=SYSTEM,
        now=timezone.now(),
    )
    assert both.same(ask(place, f"token={token}".encode(), INTROSPECT))["active"] is False


def edges(place: Scene) -> Iterator[tuple[str, Ask]]:
    """Malformed requests, and requests that are only just valid."""
    for path, good in [
        (VERIFY, json.dumps(place.body(LOOK, token="x", proof="y")).encode()),
        (BATCH, json.dumps({"requests": [place.body(LOOK, token="x", proof="y")]}).encode()),
        (INTROSPECT, b"token=x"),
    ]:
        for name, changes in CHANGED.items():
            yield f"{path} {name}", ask(place, good, path, **changes)
        for body in BODIES:
            yield f"{path} {body[:20]!r}", ask(place, body, path)
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "MADEUP"):
            asked = ask(place, good, path)
            asked.method = method
            yield f"{path} {method}", asked
        for query in ("a=b", "token=x", "a", "%ff"):
            asked = ask(place, good, path)
            asked.query = query
            yield f"{path} ?{query}", asked
        for line in (
            ("authorization", "Basic eDp5"),
            ("accept", "text/html"),
            ("content-type", "text/plain"),
            ("host", "evil.example"),
        ):
            # Whichever of the two is valid, it must not pass for the only one.
            for at in (0, 99):
                asked = ask(place, good, path)
                asked.headers.insert(at, line)
                yield f"{path} twice {line[0]} {at}", asked
        for size in (64 * 1024, 64 * 1024 + 1, 1024 * 1024, 1024 * 1024 + 1):
            yield f"{path} {size}", ask(place, good + b" " * (size - len(good)), path)
        yield f"{path} nothing", ask(place, b"", path, content_length=None)
    yield from _questions(place)


def _questions(place: Scene) -> Iterator[tuple[str, Ask]]:
    good = place.body(LOOK, token="x", proof="y")
    for wrong in ("", " ", "a b", "x" * 256, "\x7f", "\xe9"):
        yield f"key {wrong!r}", ask(place, good, idempotency_key=wrong)
    changes: list[dict[str, Any]] = [
        {"token": 7},
        {"token": None},
        {"action": {}},
        {"dry_run": 1},
        {"more": 1},
        {"url": "x"},
        {"method": ""},
    ]
    for change in changes:
        yield f"{change}", ask(place, good | change)
        yield f"batch {change}", ask(place, {"requests": [good | change, good]}, BATCH)
    batches: list[Any] = [[], None, {}, [{}] * 257, [good] * 3, ["x", None, []]]
    for requests in batches:
        yield f"requests {str(requests)[:30]}", ask(place, {"requests": requests}, BATCH)


CHANGED: dict[str, dict[str, str | None]] = {
    "as it should be": {},
    **{
        f"type {each}": {"content-type": each}
        for each in (
            "application/json; charset=utf-8",
            "application/json;charset=UTF-8",
            "APPLICATION/JSON",
            "text/plain",
            "",
            "json",
            "application/json; charset=latin-1",
            FORM,
            f"{FORM}; charset=utf-8",
            "multipart/form-data; boundary=x",
        )
    },
    "no type": {"content-type": None},
    **{
        f"accept {each}": {"accept": each}
        for each in (
            "*/*",
            "application/json",
            "application/*",
            "text/html",
            "",
            "text/html, */*;q=0.1",
            "application/json; q=0",
            "application/json; indent=4",
        )
    },
    **{
        f"host {each}": {"host": each}
        for each in ("localhost", "evil.example", "", "localhost:9", "a b", "LOCALHOST")
    },
    "no host": {"host": None},
    "no credentials": {"authorization": None},
    **{
        f"credentials {each}": {"authorization": each}
        for each in (
            "Basic",
            "Basic ",
            "Basic !!!",
            "Bearer x",
            "Basic eDp5",
            "basic eDp5",
            "DPoP x",
            "Basic \xe9",
        )
    },
    "a proof": {"authorization": None, "dpop": "x"},
    "length empty": {"content-length": ""},
    "chunked": {"content-length": None, "transfer-encoding": "chunked"},
    "cookie": {"cookie": "sessionid=x"},
    "origin": {"origin": "https://evil.example"},
    "request id": {"x-request-id": "mine"},
    "forwarded": {"x-forwarded-proto": "https", "x-forwarded-for": "10.0.0.1"},
}
BODIES = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"7",
    b'"x"',
    b"\xff",
    b"\xef\xbb\xbf{}",
    b'{"a":1,"a":2}',
    b'{"a":NaN}',
    b"{}" + b" " * 9,
    b'{"token":"\\ud800"}',
    b"[" * 2000,
    b'{"token":' + b"9" * 400 + b"}",
)


def test_malformed_requests_get_the_same_answer_from_both_endpoints(
    both: Both, place: Scene
) -> None:
    both.all_same(edges(place))


def test_too_many_calls_are_the_same(both: Both, place: Scene) -> None:
    with one_call_a_minute():
        place.post(b"")
        for path in (VERIFY, BATCH, INTROSPECT):
            assert (
                both.same(ask(place, place.body(LOOK), path), recorded=False)["error"]
                == "rate_limited"
            )


def test_what_each_answer_changes_is_the_same(both: Both) -> None:
    """The same random walk at the view and at the endpoint, over all limits used and given back."""
    budget = BUDGET | {"value": "9.00"}
    # The walk reaches the last use.
    envelope = {"max_requests_per_minute": 30, "max_burst": 3, "budgets": [budget], "max_uses": 25}
    for limits in (
        {name: envelope[name] for name in ("max_requests_per_minute", "max_burst")},
        envelope,
    ):
        answers = []
        for way in (both.at_view, both.at_endpoint):
            both.clock.move_to(NOW)
            place, random = scene(READ, PAY, **limits), Random(2027)
            token, said = place.token(), []
            for number in range(60):
                both.clock.shift(random.choice((0, 0, 1, 2, 5)))
                action = random.choice((LOOK, LOOK, pay("1.00"), pay("8.50"), pay("501.00"), None))
                named = (
                    {"idempotency_key": f"k{number % 7}"} if action and "amount" in action else {}
                )
                dry = {"dry_run": True} if random.random() < 0.2 else {}
                made = place.body(action, token=token, proof=place.proof(token), **named, **dry)
                answer = json.loads(way(ask(place, made))[2])
                said.append({name: answer.get(name) for name in TOLD})
            answers.append(said)
        assert answers[0] == answers[1]
        assert {each["reason"] for each in said} >= {None, "rate", "constraint"}


TOLD = (
    "valid",
    "error",
    "reason",
    "retry_after",
    "limits",
    "repeated",
    "violations",
    "expires_in",
    "capability",
)
