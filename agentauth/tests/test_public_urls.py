"""The short list of public addresses. Every other route authenticates, whatever the method."""

import pytest
from django.test import Client

from tests.endpoints import (
    API,
    ENDPOINTS,
    OPERATIONS,
    PUBLIC,
    PUBLIC_POSTS,
    ROUTES,
    WITHOUT_SLASH,
    address,
)

pytestmark = pytest.mark.django_db

METHODS = ("get", "post", "put", "patch", "delete")


def test_the_list_names_routes_that_exist() -> None:
    assert set(ROUTES) >= PUBLIC | PUBLIC_POSTS | set(WITHOUT_SLASH)


def test_the_description_calls_the_listed_operations_public_and_no_others() -> None:
    told = {key.split(" ")[1] for key, each in OPERATIONS.items() if not each["security"]}
    assert told == {
        each.path for each in ENDPOINTS if each.route in PUBLIC and each.route.startswith(API)
    }


@pytest.mark.parametrize("route", WITHOUT_SLASH)
def test_a_page_typed_without_its_slash_leads_to_it(client: Client, route: str) -> None:
    for method in ("get", "head"):
        answer = getattr(client, method)(
            f"{route}?next=//elsewhere.example", headers={"Host": "localhost:8000"}
        )
        # Always a path of ours, without host or query.
        assert (answer.status_code, answer["Location"]) == (301, WITHOUT_SLASH[route])
    assert client.post(route, headers={"Host": "localhost:8000"}).status_code in {403, 405}
    for other in ("/sign-in", "/v1/schema", "/settings/passkeys/", "/adminx", "/docs//"):
        assert client.get(other, headers={"Host": "localhost:8000"}).status_code == 404


@pytest.mark.parametrize("route", ROUTES)
def test_DJ_15_DJ_18_OG_1_only_the_short_list_answers_a_stranger(
    route: str, token_key: None
) -> None:
    client = Client(
        SERVER_NAME="localhost",
        SERVER_PORT="8000",
        REMOTE_ADDR="203.0.113.7",
        headers={"Origin": "http://localhost:8000"},
    )
    for method in METHODS:
        response = getattr(client, method)(address(route, {}), content_type="application/json")
        if response.status_code == 302:
            # Only to the sign-in; the admin site redirects by way of its start page.
            location = response["Location"]
            assert location == "/admin/" or location.startswith(("/sign-in/", "/admin/login/")), (
                method
            )
        elif response.status_code == 301:
            assert (method, response["Location"]) == ("get", WITHOUT_SLASH[route])
        elif response.status_code == 200:
            assert route in PUBLIC | PUBLIC_POSTS, f"{method}: not public in tests/endpoints.py"
        else:
            assert 400 <= response.status_code < 500, method
