"""Fuzzes every endpoint from its own description: no 5xx, and only documented answers."""

import copy
import os
from typing import Any

import pytest
import requests
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
from tests.actors import scenes, seeded
from tests.asking import answered
from tests.conftest import CAMPAIGN
from tests.endpoints import BODIES, OPERATIONS
from tests.flows.fuzzing import LIMITS, PAY, READ, Known
from tests.live import LiveRegistry

pytestmark = [pytest.mark.flow, pytest.mark.production]

SEED = 20_261_125
# Examples per operation: for its own callers, each of valid and invalid; for all other callers.
OWN, OTHERS = (400, 100) if CAMPAIGN else (12, 3)
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CALLERS = {"proof": "agent", "basic": "provider", "nobody": "nobody"}
CONFIG = schemathesis.Config.from_dict({"generation": {"with-security-parameters": False}})
# Closed, so that an undescribed member of an answer fails the test.
SCHEMA = from_dict(conformance.closed(copy.deepcopy(openapi())), config=CONFIG)
# What the jobs would do within a minute.
SIGN_THE_LOG = """
from django.utils import timezone
from audit.checkpoints.signing import checkpoint_log
checkpoint_log(now=timezone.now(), at_once=True)
"""


@pytest.fixture(scope="module")
def known(sqlite_registry: LiveRegistry) -> dict[str, Known]:
    """Operation → an agent, a user and a service provider of its own, so it may end any of them."""
    wishes = [{"capabilities": [READ, PAY], "envelope": LIMITS}] * len(OPERATIONS)
    found = dict(zip(OPERATIONS, map(Known, scenes(sqlite_registry, wishes)), strict=True))
    # Enough events for a full tile.
    seeded(sqlite_registry, "events", 300)
    sqlite_registry.run("shell", "-v", "0", "-c", SIGN_THE_LOG)
    return found


@pytest.mark.parametrize("key", OPERATIONS)
def test_DJ_8_what_the_description_generates_is_answered_as_described(
    key: str, known: dict[str, Known]
) -> None:
    mine = known[key]
    # A public operation has no specific caller.
    owners = {
        CALLERS.get(name)
        for each in OPERATIONS[key]["security"] or [{"nobody": []}]
        for name in each
    }
    # An operation without parameters or body has no invalid variant.
    varies = OPERATIONS[key]["parameters"] or "requestBody" in OPERATIONS[key]
    statuses: set[int] = set()
    for caller in CALLERS.values():
        for mode in GenerationMode if varies else [GenerationMode.POSITIVE]:
            examples = OWN if caller in owners else OTHERS
            statuses |= asked(key, mine, caller, mode, examples)
    # Otherwise only authentication was fuzzed. The seed approves without a passkey, so it has no
    # receipt.
    assert min(statuses) < 400 or key == "GET /v1/grants/{grant_id}/receipt"


def asked(key: str, mine: Known, caller: str, mode: GenerationMode, examples: int) -> set[int]:
    """Send generated requests; returns the statuses, each of which the description names."""
    statuses: set[int] = set()
    connections = requests.Session()
    method, path = key.split(" ")

    @seed(SEED)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(SCHEMA[path][method].as_strategy(generation_mode=mode), st.data())
    def ask(case: Case[Any], data: st.DataObject) -> None:
        varied(case, data, key, mine)
        answer = answered(
            lambda: case.call(
                base_url=mine.scene.registry.url,
                session=connections,
                verify=os.environ.get("SSL_CERT_FILE"),
                auth=mine.auth(caller, key),
                allow_redirects=False,
                timeout=60,
            )
        )
        statuses.add(answer.status_code)
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

    with connections:
        ask()
    return statuses


def varied(case: Case[Any], data: st.DataObject, key: str, mine: Known) -> None:
    """Now and then an existing id, and a valid body, whole or with one generated member."""
    for name, values in mine.path_parameters().items():
        if name in case.path_parameters and data.draw(st.booleans()):
            case.path_parameters[name] = data.draw(st.sampled_from(values))
    # Often all that exists at once: a proof needs a known event and a size that holds it.
    exists = data.draw(st.booleans())
    for name, values in mine.query_parameters().items():
        if name in case.query and (exists or data.draw(st.booleans())):
            case.query[name] = data.draw(st.sampled_from(values))
    # Such an address is 404 before it is routed; tests/flows/test_sweep.py covers it.
    case.query = {name: value for name, value in case.query.items() if "\0" not in f"{name}{value}"}
    if str(case.query.get("wait", "")).isdigit():
        case.query["wait"] = "0"
    if isinstance(case.body, dict):
        good = BODIES[key](mine)
        share = data.draw(st.sampled_from(["generated", "mixed", "good"]))
        if share == "mixed" and case.body:
            name = data.draw(st.sampled_from(sorted(case.body)))
            case.body = good | {name: case.body[name]}
        elif share == "good":
            case.body = good
