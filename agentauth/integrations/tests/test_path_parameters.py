"""The value of a path parameter that verify judges is the one that the route's functions get."""

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import pytest
from django.test import override_settings
from fastapi import Depends, FastAPI, Path
from pydantic import AfterValidator, BaseModel, StringConstraints
from rest_framework.response import Response
from rest_framework.views import APIView

from agentauth.integrations import drf
from agentauth.integrations.fastapi import needs, protect, protected
from agentauth.integrations.incoming_request import Incoming
from agentauth.integrations.requirement import ConfigurationError, parameter_text, requires
from agentauth.integrations.tests.test_confusions import PROVIDER, SIGNED, AsyncVerifier, told
from agentauth.integrations.tests.test_django import FakeVerifier, asking, served, verifier
from agentauth.sdk import Allowed

__all__ = ["verifier"]

READ = requires("read", "items/{id}")
WORD = "01900000-0000-7000-8000-00000000000A"


class Recording(AsyncVerifier):
    def __init__(self) -> None:
        self.resources: list[str] = []

    async def verify(self, **asked: Any) -> Allowed:
        self.resources.append(asked["action"].resource)
        return await super().verify(**asked)


class Colour(Enum):
    RED = "red"


class Row:
    def __str__(self) -> str:
        return "the same name"


class Item(BaseModel):
    id: int


Lower = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True)]


def by_type(kind: Any) -> Callable[..., Any]:
    async def endpoint(id: kind) -> str:  # noqa: A002
        return f"got {id}"

    return endpoint


async def item(id: int) -> int:  # noqa: A002
    return id


async def by_dependency(found: Annotated[int, Depends(item)]) -> str:
    return f"got {found}"


async def by_alias(number: Annotated[int, Path(alias="id")]) -> str:
    return f"got {number}"


def asked(endpoint: Any, path: str, *, dependency: bool) -> tuple[int, bytes, list[str]]:
    """Status and body of the answer to an agent, and the resources that verify judged."""
    app, client = FastAPI(), Recording()
    if dependency:
        app.get("/items/{id}", dependencies=[Depends(needs(READ))])(endpoint)
    else:
        app.get("/items/{id}")(protected(READ)(endpoint))
    protect(app, PROVIDER, verifier=client)  # type: ignore[arg-type]  # no registry
    headers = [(name.lower().encode(), value.encode()) for name, value in SIGNED.items()]
    start, *parts = told(app, path, headers)
    return start["status"], b"".join(each["body"] for each in parts), client.resources


@pytest.mark.parametrize("dependency", [False, True])
@pytest.mark.parametrize(
    ("endpoint", "canonical", "others"),
    [
        (by_type(int), "7", ["007", "+7", " 7", "7.0"]),
        (by_type(Lower), "work", ["WORK", " work", "Work "]),
        (by_type(UUID), WORD.lower(), [WORD, WORD.lower().replace("-", ""), f"{{{WORD}}}"]),
        (by_type(bool), "true", ["True", "1", "on", "yes"]),
        (by_type(dt.date), "2026-01-31", ["1769817600"]),
        (by_type(Annotated[str, AfterValidator(lambda text: text + "x")]), None, ["work"]),
    ],
    ids=["int", "text", "uuid", "bool", "date", "another text"],
)
def test_other_spelling_of_a_converted_parameter_is_refused_unasked(
    endpoint: Any, canonical: str | None, others: list[str], dependency: bool
) -> None:
    for each in others:
        status, body, judged = asked(endpoint, f"/items/{each}", dependency=dependency)
        assert (status, judged) == (400, []), each
        assert b"The path parameter id must be written as" in body
    if canonical is not None:
        status, body, judged = asked(endpoint, f"/items/{canonical}", dependency=dependency)
        assert (status, judged) == (200, [f"items/{canonical}"])


async def by_model(found: Annotated[Item, Path()]) -> str:
    return f"got {found.id}"


@pytest.mark.parametrize("endpoint", [by_dependency, by_alias, by_model])
def test_parameter_of_a_dependency_an_alias_or_a_model_is_compared_too(endpoint: Any) -> None:
    assert asked(endpoint, "/items/007", dependency=True)[::2] == (400, [])
    assert asked(endpoint, "/items/7", dependency=True) == (200, b'"got 7"', ["items/7"])


def test_value_that_fits_no_annotation_is_fastapi_s_to_refuse() -> None:
    assert asked(by_type(int), "/items/seven", dependency=False)[0] == 422


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (True, "true"),
        ("007", "007"),
        (1.5, "1.5"),
        (Decimal("1.50"), "1.50"),
        (Colour.RED, "red"),
        (UUID(WORD), WORD.lower()),
        (dt.date(2026, 1, 31), "2026-01-31"),
    ],
)
def test_each_converted_value_is_judged_by_its_own_text(value: object, text: str) -> None:
    assert parameter_text("id", value) == text


@pytest.mark.parametrize("value", [Row(), None, b"7", ["7"], Item(id=7)])
def test_value_without_a_text_of_its_own_is_a_mistake_of_the_route(value: object) -> None:
    """Two rows may have one name."""
    incoming = Incoming("GET", "/items/7", [], {"id": value})
    with pytest.raises(ConfigurationError, match="path parameter id is converted to"):
        READ.action(incoming)


class Changed(APIView):
    permission_classes = [drf.AgentPermission]
    authentication_classes = [drf.AgentAuthentication]
    requirement = READ

    def get(self, _request: Any, id: int) -> Response:  # noqa: A002
        raise AssertionError


def test_rest_framework_runs_no_view_with_arguments_that_were_not_judged(
    verifier: FakeVerifier,
) -> None:
    view = Changed.as_view()

    def changing(request: Any, **kwargs: Any) -> Any:
        return view(request, **(kwargs | {"id": 8}))

    changing.cls = Changed  # type: ignore[attr-defined]  # as functools.wraps copies it
    # Not those of the project that the tests run in.
    with override_settings(REST_FRAMEWORK={}):
        answer = served(changing)(asking(), id=7)
    assert answer.status_code == 403
    assert verifier.asked[0]["action"].resource == "items/7"


def test_no_caller_without_credentials_makes_the_route_convert() -> None:
    """A validator of the service provider may be slow."""
    ran: list[str] = []

    def noting(text: str) -> str:
        ran.append(text)
        return text

    app = FastAPI()
    app.get("/items/{id}")(protected(READ)(by_type(Annotated[str, AfterValidator(noting)])))
    protect(app, PROVIDER, verifier=Recording())  # type: ignore[arg-type]  # no registry
    assert told(app, "/items/7", [])[0]["status"] == 401
    assert ran == []
