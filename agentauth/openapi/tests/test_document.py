"""The description is valid, says nothing that the code does not, and its examples are real."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st
from jsonschema_rs import meta

from agentauth.http_errors import STATUSES
from agentauth.openapi.document import example_of, openapi, routes
from agentauth.openapi.example_values import STORY
from agentauth.openapi.operation_types import REFUSALS
from agentauth.openapi.value_schemas import SHAPES, TILE, ref
from agentauth.protocol.agent_manifest import verify_manifest
from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import is_resource, parse_capabilities
from audit.tile_url_converters import TileConverter
from kms.models import Key
from kms.services import ensure_key
from registry.tests.cast import TESTER
from tests.conformance import check, closed, faults
from tests.endpoints import OPERATIONS
from tests.vectors import openapi as vectors
from tests.vectors.generate import NOW
from verifier.requests import parse_verify_request

ROOT = Path(__file__).parents[3]


def contents() -> list[Any]:
    """Each body of the document, with its place."""
    found = []
    for key, operation in OPERATIONS.items():
        holders = {"request": operation.get("requestBody", {}), **operation["responses"]}
        for place, holder in holders.items():
            found += [
                pytest.param(content, id=f"{key} {place}")
                for content in holder.get("content", {}).values()
            ]
    return found


def test_what_is_served_and_what_is_described_are_the_same() -> None:
    assert set(routes()) == set(OPERATIONS), "describe it in agentauth/openapi/paths"


def test_it_is_openapi_3_1() -> None:
    # Here alone: it builds some forty grammars as it is imported, and each worker imports every
    # file of tests.
    from openapi_spec_validator import OpenAPIV31SpecValidator, validate

    validate(openapi(), cls=OpenAPIV31SpecValidator)
    assert openapi()["openapi"] == "3.1.0"


@pytest.mark.parametrize("name", openapi()["components"]["schemas"])
def test_each_schema_is_one_and_its_closed_form_too(name: str) -> None:
    schema = openapi()["components"]["schemas"][name]
    meta.validate(schema)
    meta.validate(closed(schema))


@pytest.mark.parametrize("content", contents())
def test_each_example_fits_its_schema(content: dict[str, Any]) -> None:
    examples = [each["value"] for each in content.get("examples", {}).values()]
    examples += [content["example"]] if "example" in content else []
    assert examples or content["schema"] in (ref("OpenApi"), ref("Bytes"))
    for example in examples:
        assert not faults(example, content["schema"])


def test_the_story_is_the_worked_example() -> None:
    assert vectors.story() == STORY, "python -m tests.vectors.openapi writes it again"


def test_the_readers_take_the_examples() -> None:
    assert (
        verify_manifest(STORY["manifest"], expected_audience=STORY["issuer"], now=NOW).jkt
        == STORY["jkt"]
    )
    assert parse_capabilities(STORY["capabilities"])
    assert parse_envelope(STORY["envelope"])
    assert parse_verify_request(STORY["question"]).action


def test_refusals_are_those_of_the_table_with_sentences_the_code_says() -> None:
    sources = "".join(
        path.read_text("utf-8")
        for app in ("agentauth", "audit", "registry", "verifier")
        for path in (ROOT / app).rglob("*.py")
        if not {"tests", "openapi"} & set(path.relative_to(ROOT).parts)
    )
    for code, refusal in REFUSALS.items():
        assert code in STATUSES
        # What depends on the case stands in braces there.
        parts = re.split(r"\d+|suspended|'[a-z]+:[a-z]+'", refusal.sentence)
        assert all(part in sources for part in parts), refusal.sentence
        assert len(json.dumps(example_of(code))) < 1024


SEGMENTS = st.lists(
    st.sampled_from([".", "..", "...", "a", "A.b", ".a", "..a", "~", "a/", "ä", ""]), max_size=4
)


@given(
    st.one_of(SEGMENTS.map("/".join), st.text(max_size=8), st.just("a" * 255), st.just("a" * 256))
)
def test_the_pattern_of_a_resource_is_the_rule(text: str) -> None:
    assert (not faults(text, SHAPES["Resource"])) == is_resource(text)


def test_api_schema_is_public_and_cacheable() -> None:
    answer = Client().get("/v1/schema/")
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    assert answer["Cache-Control"] == "public, max-age=300"
    assert answer.json() == json.loads(json.dumps(openapi()))


@pytest.mark.django_db
@pytest.mark.parametrize(
    "path", [path for path in openapi()["paths"] if path.startswith("/.well-known/")]
)
def test_the_live_discovery_documents_fit_their_schemas(path: str, now: datetime) -> None:
    """With a key of every purpose; a member the schema does not know would be a fault too."""
    for purpose in Key.Purpose.values:
        ensure_key(purpose=purpose, actor=TESTER, now=now)
    answer = Client().get(path)
    assert answer.status_code == 200
    check("GET", path, 200, answer.headers, answer.content)
    assert faults(
        {},
        openapi()["paths"][path]["get"]["responses"]["200"]["content"]["application/json"][
            "schema"
        ],
    )


TILES = st.lists(
    st.sampled_from(["x001/", "x000/", "067", "x067", ".p/", "1", "255", "256", "01", "0"]),
    max_size=4,
)


@given(TILES.map("".join))
def test_the_pattern_of_a_tile_takes_what_the_addresses_take(text: str) -> None:
    served = re.fullmatch(TileConverter.regex, text)
    # That a number does not begin with an element of zeros is left to the words.
    assert not served or re.fullmatch(TILE, text)
    assert served or not re.fullmatch(TILE, text) or text.startswith("x000/")
