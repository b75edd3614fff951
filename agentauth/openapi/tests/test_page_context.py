"""The page shows every operation, type and code, and asks the browser for nothing but the one
stylesheet.
"""

import re

import pytest
from django.test import Client

from agentauth.openapi import page_context
from agentauth.openapi.document import openapi
from agentauth.openapi.operation_types import REFUSALS

pytestmark = pytest.mark.django_db


@pytest.fixture
def shown(client: Client) -> str:
    answer = client.get("/docs/", headers={"Accept": "text/html"})
    assert answer.status_code == 200
    return answer.content.decode()


def test_every_operation_code_and_type_is_there(shown: str) -> None:
    for path, methods in openapi()["paths"].items():
        assert f"<code>{path}</code>" in shown
        for operation in methods.values():
            assert f'id="{operation["operationId"].replace("_", "-")}"' in shown
            assert operation["summary"].replace("'", "&#x27;") in shown
    for code in REFUSALS:
        assert f'id="error-{code}"' in shown


def test_each_link_on_the_page_leads_somewhere_on_it(shown: str) -> None:
    anchors = re.findall(r' id="([^"]+)"', shown)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r'href="#([^"]+)"', shown)) <= set(anchors)


def test_it_needs_no_script_and_no_inline_style(shown: str) -> None:
    assert not re.search(r"<style|style=|<script(?! type=\"module\" src=)|onclick", shown)


def test_what_a_description_holds_is_text() -> None:
    assert page_context.prose("<b>`a<b`</b>") == "&lt;b&gt;<code>a&lt;b</code>&lt;/b&gt;"


def test_an_example_is_laid_out_as_it_is_read() -> None:
    assert page_context.pretty({"a": [1, {"b": None}], "t": "x" * 100}) == (
        '{\n  "a": [1, {"b": null}],\n  "t": "' + "x" * 24 + "…" + "x" * 12 + '"\n}'
    )
