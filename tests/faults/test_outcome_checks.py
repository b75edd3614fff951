"""The reckoning finds each broken promise in hand-made logs, and every fault gets a turn in CI."""

import itertools
import random
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from agentauth.protocol.keys import LocalSigner, PrivateKey
from tests.actors import LivePerson, Scene
from tests.faults import clients, people
from tests.faults.clients import Agent, Answer, Load, Log
from tests.faults.outcome_checks import bursts, check_answers, unheard
from tests.faults.scenarios import IN_TURN, OF_A_CLUSTER, OF_A_REPLICA, SCENARIOS, of_this_day
from tests.faults.table import totals
from tests.http_server import Quiet, serving

pytestmark = [pytest.mark.faults]

# The rate of `paced`: four a second, with a burst of five.
STEADY = [0.25 * number for number in range(40)]
NUMBER = itertools.count()


def answer(at: float, status: int = 200, proof: str = "") -> Answer:
    body = (
        {"valid": True, "decision_id": f"{at}"}
        if status == 200
        else {"error": "temporarily_unavailable"}
    )
    return Answer(at, at + 0.01, "a", "paced", status, body, {"proof": proof or str(next(NUMBER))})


def found(*times: float, moves: tuple[float, ...] = ()) -> list[str]:
    return list(bursts(Log(answers=[answer(at) for at in times]), list(moves)))


def test_EN_1_a_burst_and_then_the_rate_is_in_order() -> None:
    assert found(*[0.0] * 5, *(each + 0.25 for each in STEADY)) == []


def test_EN_1_more_than_the_burst_is_found_wherever_it_is() -> None:
    assert found(*STEADY, *[30.0] * 6) == [
        "paced: 6 times yes within 0.01 s, at 4 a second and 5 at once"
    ]
    assert len(found(*[0.2 * number for number in range(60)])) == 1


def test_EN_7_burst_in_a_new_home_is_found_despite_time_for_one_use() -> None:
    assert found(*STEADY, *[20.0] * 3) == []
    assert found(*STEADY, *(each + 16.25 for each in STEADY), moves=(16.0,)) == []
    [sentence] = found(*STEADY, *[16.1] * 3, moves=(16.0,))
    assert sentence == "paced: 1 times yes within 0.11 s of a new home, at 4 a second and no burst"


def no(kind: str, reason: str, at: float = 5.0, *, again: bool = False) -> Answer:
    body = {"valid": False, "error": "invalid_token", "reason": reason}
    return Answer(at, at + 0.01, "a", kind, 200, body, {"proof": str(next(NUMBER))}, again)


def test_a_no_for_another_reason_than_the_grants_own_limits_is_found() -> None:
    fine = [
        no("paced", "rate"),
        no("capped", "budget"),
        no("counted", "max_uses"),
        no("spender", "rate"),
    ]
    fine += [no("confirmed", "confirm_above"), no("reader", "replayed", again=True)]
    assert list(check_answers(Log(answers=fine), bound=1)) == []
    for wrong in (
        no("reader", "rate"),
        no("payer", "unknown"),
        no("named", "replayed"),
        no("paced", "revoked"),
    ):
        assert len(list(check_answers(Log(answers=[wrong]), bound=1))) == 1


def test_a_no_before_a_revocation_has_begun_is_found() -> None:
    assert (
        list(
            check_answers(
                Log(watched=[no("grant", "revoked", 5.0)], revoking={"grant": 4.9}), bound=1
            )
        )
        == []
    )
    for begun in ({}, {"grant": 6.0}):
        assert (
            len(
                list(
                    check_answers(
                        Log(watched=[no("grant", "revoked", 5.0)], revoking=begun), bound=1
                    )
                )
            )
            == 1
        )


def test_retried_call_counts_between_first_question_and_first_yes() -> None:
    """A lost answer and its retry are one use of the rate."""
    twice = [answer(at, proof=str(at)) for at in STEADY for _ in range(2)]
    assert list(bursts(Log(answers=twice), [])) == []


def named(
    status: int = 200,
    proof: str = "first",
    *,
    repeated: bool | None = None,
    error: str = "",
    delivery: str = "",
) -> Answer:
    """About one payment; a yes if `repeated` is given; `delivery` is the provider's own key."""
    body: dict[str, Any] = (
        {"error": error} if repeated is None else {"valid": True, "decision_id": "d"}
    )
    body |= {"repeated": True} if repeated else {}
    question = {"proof": proof, "idempotency_key": "payment"}
    return Answer(1, 2, "a", "payer", status, body, question, delivery=delivery)


LOST, DOWN = named(0), named(503, error="temporarily_unavailable")
RUNNING = named(409, error="idempotency_in_progress")
YES, TOO_OFTEN = named(repeated=False), named(error="envelope_exceeded")
NEVER_SENT, REPEATED = named(-1), named(proof="second", repeated=True)


def kept(answer: Answer) -> Answer:
    """The same answer under the provider's own key."""
    return replace(answer, delivery="key")


@pytest.mark.parametrize(
    ("answers", "is_debited"),
    [
        ([YES], True),
        # The same question twice, and later another one.
        ([LOST, YES, YES, REPEATED], True),
        # Debited, and its caller knows that the outcome is unknown.
        ([LOST], True),
        ([DOWN, REPEATED], True),
        ([LOST, RUNNING], True),
        # Without its own key the provider does not learn the outcome of its first try.
        ([DOWN, named(error="replayed"), REPEATED], True),
        # With its own key it asks until it learns the outcome, or gives up.
        ([kept(LOST), kept(DOWN), kept(YES), REPEATED], True),
        ([kept(DOWN), kept(RUNNING), kept(NEVER_SENT), REPEATED], True),
        # No operation was done.
        ([TOO_OFTEN], False),
        ([NEVER_SENT], False),
    ],
)
def test_debit_that_was_answered_or_has_unknown_outcome_is_in_order(
    answers: list[Answer], is_debited: bool
) -> None:
    assert list(unheard(Log(answers=answers), {"payment"} if is_debited else set())) == []


@pytest.mark.parametrize("answers", [[REPEATED], [TOO_OFTEN, REPEATED], [NEVER_SENT, REPEATED]])
def test_debit_answered_only_as_a_repeat_is_found(answers: list[Answer]) -> None:
    for debited in ({"payment"}, set()):
        [sentence] = unheard(Log(answers=answers), debited)
        assert (
            sentence
            == "1 operations are debited, all who asked were answered, and nobody was told to act"
        )


@pytest.mark.parametrize(
    "answers",
    [
        [TOO_OFTEN],
        # Under the provider's own key the stored answer must be repeated; here the first yes is
        # lost for good.
        [kept(DOWN), kept(named(repeated=True))],
        [kept(LOST), kept(named(error="replayed"))],
    ],
)
def test_a_debit_behind_a_no_or_a_repeat_is_found(answers: list[Answer]) -> None:
    assert len(list(unheard(Log(answers=answers), {"payment"}))) == 1


def test_one_operation_allowed_by_two_questions_is_found() -> None:
    twice = Log(answers=[YES], replays=[named(proof="second", repeated=False)])
    assert list(unheard(twice, {"payment"})) == ["one operation, 2 told to act"]


@pytest.mark.parametrize(
    ("has_key", "statuses"),
    [
        (True, [200]),
        (True, [503, 409, 200]),
        (True, [0, -1, 200]),
        # The provider gives up.
        (True, [503, 503, 503]),
        (False, [503]),
        (False, [0, 503]),
        (False, [-1, 0]),
    ],
)
def test_a_provider_asks_again_under_its_key_until_it_knows_or_gives_up(
    monkeypatch: pytest.MonkeyPatch, has_key: bool, statuses: list[int]
) -> None:
    left = list(statuses)

    def answered(*_: Any, delivery: str, again: bool) -> Answer:
        return replace(named(left.pop(0)), delivery=delivery, again=again)

    monkeypatch.setattr(clients, "ask", answered)
    monkeypatch.setattr(clients, "PAUSE_SECONDS", 0)
    nobody: Any = None
    load = Load({"a": nobody, "b": nobody}, [], [], random.Random(1))
    monkeypatch.setattr(load.rng, "random", lambda: 0.0 if has_key else 0.9)
    load._asked(Agent("payer", nobody, "", 0, keyed=True), "a", {})
    assert left == []
    asked = load.log.answers
    assert [(each.status, each.again) for each in asked] == [
        (each, number > 0) for number, each in enumerate(statuses)
    ]
    [key] = {each.delivery for each in asked}
    assert bool(key) == has_key


@pytest.mark.parametrize("status", [500, 501, 502, 504])
def test_U1_a_defect_of_the_registry_is_found_and_503_is_none(status: int) -> None:
    fine = [("POST /v1/tokens", each) for each in (201, 401, 409, 429, 503)]
    assert list(check_answers(Log(registry=fine), bound=1)) == []
    found = list(check_answers(Log(registry=[*fine, *[("POST /v1/tokens", status)] * 2]), bound=1))
    assert found == [f"POST /v1/tokens was answered {status}, 2 times"]


def test_whatever_humans_and_agents_ask_the_registry_its_status_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even if the caller treats it as a transient error and goes on."""
    grant = "0b4f7f5e-3c1f-4c1e-9d39-0a8f3b6a7c11"
    broken = httpx.MockTransport(
        lambda request: httpx.Response(500, text="<html>", request=request)
    )
    pages = httpx.Client(transport=broken, base_url="http://registry.example")
    monkeypatch.setattr(httpx, "request", httpx.Client(transport=broken).request)
    registry: Any = SimpleNamespace(url="http://registry.example")
    signer = LocalSigner(PrivateKey.generate())
    place = Scene(registry, "agent", "human", grant, "http://sp.example", "id", "secret", signer)
    person = LivePerson.__new__(LivePerson)
    person.registry, person.http = registry, pages
    agent = Agent("payer", place, "", 0)
    load = Load({}, [agent], [], random.Random(1))
    people.listen(load.log, person)
    assert not people._approved(person, grant)
    assert not people._is_decided(load, place)
    assert people._token(load, place) is None
    assert load._revoked(agent) is None
    assert load.log.registry == [
        ("GET /approvals/…/", 500),
        ("GET /v1/grants/…", 500),
        ("POST /v1/tokens", 500),
        ("POST /v1/grants/…/revoke", 500),
    ]


@pytest.fixture
def one_who_always_says_yes() -> Iterator[Any]:
    class Yes(Quiet):
        def do_POST(self) -> None:
            self.body()
            self.say(200, {"valid": True, "decision_id": "another"})

    with serving(Yes) as url:
        yield SimpleNamespace(port=int(url.rpartition(":")[2]), url=url)


def test_RF_5_after_load_young_proofs_are_replayed_and_doubles_found(
    one_who_always_says_yes: Any,
) -> None:
    place: Any = SimpleNamespace(client_id="provider", client_secret="secret", grant_id="grant")
    load = Load(
        {"a": one_who_always_says_yes}, [Agent("paced", place, "", 1)], [], random.Random(1)
    )
    now = time.monotonic()
    load.log.answers += [
        answer(now - 1, proof="taken"),
        answer(now - 2, 0, "lost"),
        answer(now - 3, 503, "not known"),
        answer(now - 4, -1, "never sent"),
        answer(now - 61, proof="old"),
    ]
    load.replay_all()
    assert sorted(each.question["proof"] for each in load.log.replays) == [
        "lost",
        "not known",
        "taken",
    ]
    assert list(check_answers(load.log, bound=1)) == ["a proof passed 2 times"]


def test_what_is_broken_is_counted_by_what_it_comes_to() -> None:
    """With the sentences of the reckoning and of the oracle."""
    twice = [answer(at, proof="one") for at in (1.0, 2.0)]
    named = [
        replace(each, question={"proof": f"{each.began}", "idempotency_key": "key"})
        for each in twice
    ]
    late = replace(answer(9.0), kind="grant")
    wrong = answer(1.0, 500)
    log = Log(
        answers=[*twice, *named, wrong],
        watched=[late],
        revoking={"grant": 1.0},
        revoked={"grant": 2.0},
    )
    broken = [*check_answers(log, bound=1), *found(*[0.0] * 6)]
    assert (
        totals(broken)
        == "acknowledged acts lost 0, doubled 1, wrongly accepted 3, other broken promises 1"
    )
    oracle = Path(__file__).parents[1].joinpath("oracle.py").read_text()
    for kind, sentences in {
        "acknowledged acts lost 1": [
            "a token was delivered that is not on record: x",
            "an acknowledged decision is not on record: x",
            "an acknowledged revocation is lost: x",
            "an acknowledged approval is lost: x",
            "an approval without its receipt: x",
        ],
        "doubled 1": ["a yes of a human used 2 times: x", "done 2 times: x"],
        "wrongly accepted 1": [
            "ledger of x: 4 uses of 3",
            "ledger of x: 4 spent of day, which ends at 3",
        ],
        "other broken promises 1": ["ledger of x: 4 uses, 3 events", "token row without event: x"],
    }.items():
        for sentence in sentences:
            assert kind in totals([sentence]), sentence
            # The sentence is one the oracle can produce: its words occur in the source.
            assert all(words in oracle for words in re.split(r"\bx\b|\bday\b|\d+", sentence)), (
                sentence
            )


def test_every_fault_has_its_turn_and_no_day_has_more_than_a_few() -> None:
    every = [*SCENARIOS, *OF_A_CLUSTER, *OF_A_REPLICA]
    always = [each.name for each in every if each.in_ci]
    seen: set[str] = set()
    for day in range(739_000, 739_000 + len(every)):
        names = [each.name for each in of_this_day(day)]
        assert set(always) < set(names)
        assert len(names) == len(always) + IN_TURN
        assert names == [each.name for each in of_this_day(day)]
        seen |= set(names)
    assert {each.name for each in every} - seen == {"the disk of PostgreSQL is full"}


def test_an_operation_that_never_succeeds_is_reported_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CI asserts this instead of a success rate: on a healthy system retried operations end."""
    agent: Any = SimpleNamespace(kind="payer")
    load = Load({}, [], [], random.Random(1))
    load._unfinished = [(agent, "late"), (agent, "never")]
    lost = dict.fromkeys(("late", "never"), 0)

    def call(_: object, __: str, key: str) -> Any:
        lost[key] += 1
        return SimpleNamespace(good=key == "late" and lost[key] > 2, status=503, body={})

    def passes(seconds: float) -> None:
        now[0] += seconds

    now = [0.0]
    monkeypatch.setattr(load, "call", call)
    # Its own clock: a machine that stalls would leave no time for the third call.
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=passes)
    monkeypatch.setattr(clients, "time", clock)
    monkeypatch.setattr(clients, "FINISH_SECONDS", 1)
    assert load.finish() == ["payer was told 503 {} in the end"]
    assert lost["late"] == 3
