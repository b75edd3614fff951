"""Each operation gives every answer it declares: every status, error code and reason; pages
likewise.

The cases are read from the description (other tests hold it to the URLconf, the views and the table
of errors), so a case without a scenario fails, and so does a scenario for an undescribed case.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from pytest_django.plugin import DjangoDbBlocker

from agentauth.http_errors import STATUSES
from agentauth.openapi.verify_schemas import IN_PLACE, REASONS
from tests import conformance
from tests.contract.decisions import BATCH, DECISIONS
from tests.contract.edges import PAGES, PROOFS
from tests.contract.scenarios import OWN, SHARED
from tests.contract.stage import Stage, good
from tests.contract.test_page import NOT_OVER_HTTP, VERIFY_REFUSALS
from tests.endpoints import BODIES, OPERATIONS
from tests.rows import rows_of_a_module

pytestmark = pytest.mark.django_db

# Operations that can succeed in two ways.
FIRST = {"POST /v1/agents": "201", "POST /v1/catalogue": "201", "POST /v1/grants": "201"}


# (operation, status, error code); the code is empty for success.
CASES = [
    (operation, int(status), code)
    for operation, described in OPERATIONS.items()
    for status, answer in described["responses"].items()
    for code in answer.get("content", {}).get("application/json", {}).get("examples", {}) or [""]
]


@pytest.fixture(scope="module")
def stage(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[Stage]:
    with rows_of_a_module(django_db_blocker):
        yield Stage()


def scenario_of(operation: str, status: int, code: str) -> Any:
    """The operation's own scenario, else the shared one."""
    second = str(status) if not code and FIRST.get(operation, str(status)) != str(status) else code
    return OWN.get((operation, second)) or SHARED[second]


@pytest.mark.parametrize(("operation", "status", "code"), CASES, ids=lambda part: str(part) or "ok")
def test_each_answer_that_is_described_is_given(
    stage: Stage, operation: str, status: int, code: str
) -> None:
    answer = scenario_of(operation, status, code)(stage, good(stage, operation))
    asked = conformance.described(answer.request["REQUEST_METHOD"], answer.request["PATH_INFO"])
    assert asked is not None
    assert asked["operationId"] == OPERATIONS[operation]["operationId"]
    body = answer.json() if answer.headers.get("Content-Type") == "application/json" else {}
    assert (answer.status_code, body.get("error", "")) == (status, code), body
    if code:
        assert len(answer.content) < 1024
        assert answer["Cache-Control"] == "no-store"
        assert ("Retry-After" in answer.headers) == (
            status in {429, 503} or code == "not_yet_logged"
        )
        assert answer["X-Request-Id"]


def test_no_scenario_is_for_an_answer_that_is_not_described() -> None:
    known = {(operation, code) for operation, _, code in CASES}
    known |= {(operation, str(status)) for operation, status, code in CASES if not code}
    assert set(OWN) <= known
    assert set(SHARED) <= {code for _, _, code in CASES}


def test_each_operation_that_takes_a_body_has_one_that_it_accepts() -> None:
    taking = {key for key, each in OPERATIONS.items() if "requestBody" in each}
    assert set(BODIES) == taking, "BODIES of tests/endpoints.py has one for each"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_other_method_is_taken(stage: Stage, operation: str) -> None:
    call = good(stage, operation)
    for method in ("PUT", "OPTIONS"):
        answer = stage.send(call, method=method)
        assert (answer.status_code, answer.json()["error"]) == (405, "method_not_allowed")
        assert call.method in answer["Allow"]


@pytest.mark.parametrize(("error", "reason"), DECISIONS, ids=str)
@pytest.mark.usefixtures("stage")
def test_each_refusal_of_verify_is_given(error: str, reason: str | None) -> None:
    answer = DECISIONS[error, reason]()
    assert (answer["valid"], answer["error"], answer.get("reason")) == (False, error, reason)


def test_each_refusal_that_is_described_has_its_scenario() -> None:
    assert set(DECISIONS) == VERIFY_REFUSALS
    assert set(BATCH) == set(IN_PLACE)


@pytest.mark.parametrize("code", IN_PLACE)
def test_each_error_in_the_place_of_a_question_is_given(stage: Stage, code: str) -> None:
    answer = BATCH[code](stage)
    assert answer.status_code == 200
    assert code in {result.get("error") for result in answer.json()["results"]}


@pytest.mark.parametrize("code", PAGES)
def test_each_refusal_of_pages_is_given(stage: Stage, code: str) -> None:
    answer = PAGES[code](stage)
    assert (answer.status_code, answer.json()["error"]) == (STATUSES[code], code)
    assert len(answer.content) < 1024


def test_each_code_there_is_has_its_scenario() -> None:
    given = {code for _, _, code in CASES if code} | set(PAGES) | {"method_not_allowed"}
    # Statuses checked without a server, those inside an answer of verify, and the one that must
    # never occur.
    assert set(STATUSES) - given == NOT_OVER_HTTP | {"server_error"}


@pytest.mark.parametrize("reason", [*REASONS["invalid_dpop_proof"], "body"])
def test_each_fault_of_a_proof_at_the_registry_has_its_reason(stage: Stage, reason: str) -> None:
    answer = PROOFS[reason](stage)
    assert (answer.status_code, answer.json()["reason"]) == (401, reason)
