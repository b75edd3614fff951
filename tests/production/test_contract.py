"""The scenarios of tests/contract at the installed system, each with its own users and agents.

Scenarios that need a fault inside the server's process (FAULTS) run in development only.
"""

import secrets
from collections.abc import Iterator

import pytest

from agentauth.openapi.verify_schemas import IN_PLACE, REASONS
from audit.models import Checkpoint
from tests.contract import test_api as contract
from tests.contract.decisions import DECISIONS
from tests.contract.edges import PAGES
from tests.contract.stage import Stage
from tests.endpoints import OPERATIONS
from tests.production.headers import PLACES, table
from tests.production.registry import ProductionRegistry
from tests.production.wire import over_the_wire
from tests.sampling import one_in
from tests.waiting import until

pytestmark = pytest.mark.production

# A limit of one call, a database that is away, a held lock, an unsigned log: other tests would
# suffer from them here.
FAULTS = {"rate_limited", "temporarily_unavailable", "idempotency_in_progress", "not_yet_logged"}
# Its scenario writes a row without a service, which `verify_audit` must name.
FORGED = {("POST /v1/catalogue", "invalid_state")}
# Unit tests ask for each of them in their own process.
CASES = [case for case in contract.CASES if case[2] not in FAULTS and case[::2] not in FORGED]
# Tests cannot set the server's clock.
OTHER_TIMES = {("invalid_token", "expired"), ("invalid_token", "not_yet_valid")}


@pytest.fixture(autouse=True)
def _wire(production: ProductionRegistry) -> Iterator[None]:
    """Django's test client sends its requests over https."""
    with over_the_wire(production):
        yield


class ProductionStage(Stage):
    """Has its own users and addresses, since other tests use the system meanwhile."""

    def sign_the_log(self) -> None:
        """The system's jobs sign; only they may use their folder. They may have just begun."""
        until(Checkpoint.objects.exists, "the jobs sign nothing")


@pytest.fixture
def stage() -> Stage:
    name = secrets.token_hex(6)
    return ProductionStage(
        name=f"Acme {name}",
        audience=f"https://{name}.example.org",
        email=f"alice-{name}@example.org",
    )


@pytest.mark.parametrize(
    ("operation", "status", "code"),
    # Unit tests ask for each of them in their own process.
    one_in(
        5, (case for case in contract.CASES if case[2] not in FAULTS and case[::2] not in FORGED)
    ),
    ids=lambda part: str(part) or "ok",
)
def test_SA_12_each_answer_is_given_in_production(
    stage: Stage, operation: str, status: int, code: str
) -> None:
    contract.test_each_answer_that_is_described_is_given(stage, operation, status, code)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_SA_12_no_other_method_is_taken_in_production(stage: Stage, operation: str) -> None:
    contract.test_no_other_method_is_taken(stage, operation)


@pytest.mark.parametrize(
    ("error", "reason"), [case for case in DECISIONS if case not in OTHER_TIMES], ids=str
)
def test_SA_12_each_refusal_of_verify_is_given_in_production(
    error: str, reason: str | None
) -> None:
    contract.test_each_refusal_of_verify_is_given(error, reason)


@pytest.mark.parametrize("code", [code for code in IN_PLACE if code not in FAULTS])
def test_SA_12_each_error_in_a_batch_is_given_in_production(stage: Stage, code: str) -> None:
    contract.test_each_error_in_the_place_of_a_question_is_given(stage, code)


@pytest.mark.parametrize("code", PAGES)
def test_SA_12_each_refusal_of_pages_is_given_in_production(stage: Stage, code: str) -> None:
    contract.test_each_refusal_of_pages_is_given(stage, code)


@pytest.mark.parametrize("reason", [*REASONS["invalid_dpop_proof"], "body"])
def test_SA_12_each_fault_of_a_proof_has_its_reason_in_production(
    stage: Stage, reason: str
) -> None:
    contract.test_each_fault_of_a_proof_at_the_registry_has_its_reason(stage, reason)


def test_the_table_of_headers_says_where_in_words_we_know() -> None:
    assert {place for _, place in table().values()} == set(PLACES)
