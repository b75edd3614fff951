"""kill -9 before each SQL statement of issuing, approving, verifying and revoking.

Named points (test_kills.py) are where the code expects a death; these are all other places. After
each death the client retries, and tests/oracle.py compares its answers with rows, counters, events,
receipts and the log.
"""

import sys
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice

import httpx
import pytest

from tests.actors import LivePerson, Scene, scenes
from tests.faults.table import Results
from tests.faults.test_kills import (
    BUDGET,
    KILLS,
    PAY,
    THREE,
    consult_oracle,
    jti_of,
    new_log,
    revoke,
)
from tests.live import LiveRegistry

pytestmark = pytest.mark.sweep

# No act has fewer statements; a lower count would mean that nothing died.
FEWEST = 3
Act = Callable[[], httpx.Response]


@pytest.fixture(scope="module")
def registry(
    database_url: str, tmp_path_factory: pytest.TempPathFactory, results: Results
) -> Iterator[LiveRegistry]:
    made = LiveRegistry(tmp_path_factory.mktemp("dying"), database_url=database_url)
    made.command = [
        *(sys.executable, "-m", "gunicorn", "-c", "python:agentauth.server.web_gunicorn"),
        *("--bind", f"127.0.0.1:{made.port}", "tests.faults.dying:application"),
    ]
    made.prepare()
    made.start()
    yield made
    made.stop()
    kills = made.log.read_text().count("was sent SIGKILL")
    results.kills += kills
    database = "PostgreSQL" if database_url else "SQLite"
    results.lines.append(
        "kill -9 before each statement of issuing, approving, verifying and revoking, on "
        f"{database}: {kills} kills"
    )


def dies_everywhere(registry: LiveRegistry, line: str, acts: Iterator[Act]) -> list[httpx.Response]:
    """The final answer to each act: the first act dies before its first statement and is retried,
    the next before its second, and so on; the last has no statement left to die at.
    """
    answers = []
    for number in count(1):
        act = next(acts)
        registry.fault_at(f"{line} {number}")
        try:
            answers.append(act())
        except httpx.TransportError:
            registry.fault_at("")
            answers.append(act())
        else:
            registry.fault_at("")
            break
    assert len(answers) > FEWEST
    return answers


def many(registry: LiveRegistry, **more: str) -> Iterator[Scene]:
    """As many grants as are needed."""
    wish = {"capabilities": [PAY], "envelope": {"budgets": [BUDGET]}} | more
    while True:
        yield from scenes(registry, [wish] * 20)


@pytest.mark.long
def test_RF_17_a_kill_before_any_statement_of_issuing(registry: LiveRegistry) -> None:
    place, log = next(many(registry)), new_log()

    def acts() -> Iterator[Act]:
        while True:
            key = {"Idempotency-Key": str(uuid.uuid4())}
            yield partial(place.api, "POST", "/v1/tokens", {"grant_id": place.grant_id}, **key)

    for _ in range(KILLS):
        for answer in dies_everywhere(registry, "POST /v1/tokens", acts()):
            assert answer.status_code == 201, answer.text
            log["tokens"].append(jti_of(answer.json()["access_token"]))
    assert len(set(log["tokens"])) == len(log["tokens"])
    consult_oracle(registry, log)


@pytest.mark.long
def test_RF_17_a_kill_before_any_statement_of_verifying(registry: LiveRegistry) -> None:
    """The provider repeats the question under its key; 3 euros are debited once each time."""
    log = new_log()
    for place in islice(many(registry), KILLS):
        token = place.token()

        def acts(place: Scene = place, token: str = token) -> Iterator[Act]:
            while True:
                body = place.question(token, THREE, idempotency_key=str(uuid.uuid4()))
                yield partial(place.ask, body, **{"Idempotency-Key": str(uuid.uuid4())})

        answers = dies_everywhere(registry, "POST /v1/verify", acts())
        for answer in answers:
            assert answer.json()["valid"], answer.text
            log["decisions"].append(answer.json()["decision_id"])
        body = place.question(token, THREE, idempotency_key=str(uuid.uuid4()), dry_run=True)
        rest = place.ask(body).json()["limits"]["budgets"][0]["remaining"]
        assert rest == f"{100 - 3 * len(answers)}.00"
    assert len(set(log["decisions"])) == len(log["decisions"])
    consult_oracle(registry, log)


@pytest.mark.long
def test_RF_17_a_kill_before_any_statement_of_approving(registry: LiveRegistry) -> None:
    alice, log = LivePerson(registry, f"alice-{uuid.uuid4().hex[:8]}@example.org"), new_log()
    places = many(registry, owner=alice.email)

    def acts() -> Iterator[Act]:
        for place in places:
            log["approved"].append(place.grant_id)
            yield partial(alice.decide, place.grant_id, alice.sign(place.grant_id))

    for _ in range(KILLS):
        for answer in dies_everywhere(registry, "POST /decide", acts()):
            assert answer.status_code == 200, answer.text
    alice.http.close()
    consult_oracle(registry, log)


@pytest.mark.long
def test_RF_17_kill_at_any_statement_of_a_confirmed_payment_is_safe(
    registry: LiveRegistry,
) -> None:
    """Wherever it dies, the confirmation is used up together with the payment, or not at all."""
    alice, log = LivePerson(registry, f"alice-{uuid.uuid4().hex[:8]}@example.org"), new_log()
    limits = {"confirm_above": {"value": "2.00", "currency": "EUR"}, "budgets": [BUDGET]}
    for place in scenes(
        registry, [{"capabilities": [PAY], "envelope": limits, "owner": alice.email}] * KILLS
    ):
        assert alice.decide(place.grant_id, alice.sign(place.grant_id)).status_code == 200
        log["approved"].append(place.grant_id)
        token = place.token()

        def acts(place: Scene = place, token: str = token) -> Iterator[Act]:
            while True:
                key = str(uuid.uuid4())
                asked = place.ask(place.question(token, THREE, idempotency_key=key)).json()
                assert asked["reason"] == "confirm_above", asked
                assert alice.confirm(asked["confirmation_id"]).status_code == 200
                body = place.question(token, THREE, idempotency_key=key)
                yield partial(place.ask, body, **{"Idempotency-Key": str(uuid.uuid4())})

        answers = dies_everywhere(registry, "POST /v1/verify", acts())
        for answer in answers:
            assert answer.json()["valid"], answer.text
            log["decisions"].append(answer.json()["decision_id"])
    alice.http.close()
    assert len(set(log["decisions"])) == len(log["decisions"])
    consult_oracle(registry, log)


@pytest.mark.long
def test_RF_17_a_kill_before_any_statement_of_revoking(registry: LiveRegistry) -> None:
    places, log = many(registry), new_log()

    def acts() -> Iterator[Act]:
        for place in places:
            log["revoked"].append(place.grant_id)
            yield partial(revoke, place)

    for _ in range(KILLS):
        for answer in dies_everywhere(registry, "POST /revoke", acts()):
            assert answer.status_code == 204, answer.text
    consult_oracle(registry, log)
