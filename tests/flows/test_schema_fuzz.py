"""Every endpoint asked what its own description generates, valid and not: no 5xx, and only the answers it names."""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict
from schemathesis import Case, GenerationMode
from schemathesis.openapi import from_dict
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from agentauth.openapi.document import openapi
from tests import conformance
from tests.actors import scenes
from tests.conftest import CAMPAIGN
from tests.flows.fuzzing import LIMITS, PAY, READ, Known
from tests.live import LiveRegistry

pytestmark = pytest.mark.flow

SEED = 20_261_125
# For each operation: of its own callers, valid and not each; of everybody else.
OWN, OTHERS = (400, 100) if CAMPAIGN else (12, 3)
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CALLERS = {"proof": "agent", "basic": "provider", "nobody": "nobody"}
CONFIG = schemathesis.Config.from_dict({"generation": {"with-security-parameters": False}})
# Shut: an answer with a member the description does not know is a fault here.
SCHEMA = from_dict(conformance.closed(copy.deepcopy(openapi())), config=CONFIG)
FOUND = {
    f"{method.upper()} {path}": SCHEMA[path][method.upper()]
    for path, methods in openapi()["paths"].items()
    for method in methods
}
# What the jobs would do beside the server, over enough events for a full tile.
SIGN_THE_LOG = """
from django.utils import timezone
from audit.tests.proving import grow, sign
grow(300, now=timezone.now())
sign(timezone.now())
"""
COUNTS: Counter[tuple[str, int]] = Counter()


@pytest.fixture(scope="module")
def known(sqlite_registry: LiveRegistry) -> Iterator[dict[str, Known]]:
    """An agent, a human and a service provider of its own for each operation: one ends what it likes."""
    wishes = [{"capabilities": [READ, PAY], "envelope": LIMITS}] * len(FOUND)
    found = dict(zip(FOUND, map(Known, scenes(sqlite_registry, wishes)), strict=True))
    sqlite_registry.run("shell", "-v", "0", "-c", SIGN_THE_LOG)
    yield found
    statuses = Counter(status for _, status in COUNTS.elements())
    print(
        f"\nschema fuzz: {COUNTS.total()} calls of {len(FOUND)} operations, by status {dict(sorted(statuses.items()))}"
    )


@pytest.mark.parametrize("caller", ["agent", "provider", "nobody"])
@pytest.mark.parametrize("key", FOUND)
def test_DJ_8_what_the_description_generates_is_answered_as_described(
    key: str, caller: str, known: dict[str, Known]
) -> None:
    operation, mine = FOUND[key], known[key]
    # Of what is open to everybody, nobody in particular is the caller.
    own = caller in {
        CALLERS.get(name) for each in described(key)["security"] or [{"nobody": []}] for name in each
    }
    # Where nothing is to be chosen, nothing can be chosen wrongly.
    varies = described(key)["parameters"] or "requestBody" in described(key)
    for mode in GenerationMode if varies else [GenerationMode.POSITIVE]:

        @seed(SEED)
        @settings(
            max_examples=OWN if own else OTHERS,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode), st.data())
        def ask(case: Case[Any], data: st.DataObject) -> None:
            varied(case, data, key, mine)
            answer = case.call(
                base_url=mine.scene.registry.url, auth=mine.auth(caller, key), allow_redirects=False
            )
            COUNTS[key, answer.status_code] += 1
            assert answer.status_code < 500, case.as_curl_command()
            case.validate_response(answer, checks=CHECKS)
            conformance.check(
                case.method,
                case.formatted_path,
                answer.status_code,
                CaseInsensitiveDict({name: values[0] for name, values in answer.headers.items()}),
                answer.content,
            )
            mine.answered(key, answer.status_code, answer.content)

        ask()


def described(key: str) -> Any:
    method, path = key.split(" ")
    return openapi()["paths"][path][method.lower()]


def varied(case: Case[Any], data: st.DataObject, key: str, mine: Known) -> None:
    """Now and then an id that exists, and a body that would pass, whole or with one generated member."""
    for name, values in mine.path_parameters().items():
        if name in case.path_parameters and data.draw(st.booleans()):
            case.path_parameters[name] = data.draw(st.sampled_from(values))
    for name, values in mine.query_parameters().items():
        if name in case.query and data.draw(st.booleans()):
            case.query[name] = data.draw(st.sampled_from(values))
    # Such an address is 404 before it is anybody's; tests/flows/test_sweep.py asks for them.
    case.query = {name: value for name, value in case.query.items() if "\0" not in f"{name}{value}"}
    if str(case.query.get("wait", "")).isdigit():
        case.query["wait"] = "0"
    if isinstance(case.body, dict):
        good = mine.body(key)
        share = data.draw(st.sampled_from(["generated", "mixed", "good"]))
        if share == "mixed" and case.body:
            name = data.draw(st.sampled_from(sorted(case.body)))
            case.body = good | {name: case.body[name]}
        elif share == "good":
            case.body = good


def test_each_operation_was_also_answered_with_what_was_asked_for() -> None:
    """Else all that was fuzzed of it is the way in."""
    # The seed approves without a passkey, so there is no receipt to be had.
    asked = {key for key, _ in COUNTS} - {"GET /v1/grants/{grant_id}/receipt"}
    assert asked, "it counts what the others asked, in the same process"
    assert asked == {key for key, status in COUNTS if status < 400}
