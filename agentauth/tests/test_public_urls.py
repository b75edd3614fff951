"""The short list of public addresses. Every other route authenticates, whatever the method."""

from collections.abc import Iterator

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

pytestmark = pytest.mark.django_db

# docs/protocol.md section 2. Setup, recovery and claim links carry their secret: an unknown one is
# 404.
PUBLIC = {
    "",
    ".well-known/agentauth",
    ".well-known/oauth-authorization-server",
    ".well-known/jwks.json",
    "v1/schema/",
    "docs/",
    "v1/audit/checkpoint",
    "v1/audit/proof/inclusion",
    "v1/audit/proof/consistency",
    "v1/audit/proof/bundle",
    "v1/audit/tile/entries/<tile:tile>",
    "v1/audit/tile/<level:level>/<tile:tile>",
    "health/live",
    "health/ready",
    "health/startup",
    "sign-in/",
    "sign-in/options",
    "recovered/",
}
# A user may type these without the slash, and is redirected.
WITHOUT_SLASH = {"docs": "/docs/", "admin": "/admin/"}
UUID = "01980000-0000-7000-8000-000000000000"
METHODS = ("get", "post", "put", "patch", "delete")


def routes(resolver: URLResolver, prefix: str = "") -> Iterator[str]:
    for entry in resolver.url_patterns:
        route = prefix + str(entry.pattern).removeprefix("^").removesuffix("$")
        if isinstance(entry, URLPattern):
            yield route
        else:
            yield from routes(entry, route)


def filled(route: str) -> str:
    """The route with all parameters filled in."""
    parts = [UUID if part.startswith("<") else part for part in route.split("/")]
    return "/" + "/".join(parts)


ROUTES = sorted({route for route in routes(get_resolver()) if "(?P" not in route})


def test_the_list_names_routes_that_exist() -> None:
    assert set(ROUTES) >= PUBLIC


@pytest.mark.parametrize("route", WITHOUT_SLASH)
def test_a_page_typed_without_its_slash_leads_to_it(client: Client, route: str) -> None:
    for method in ("get", "head"):
        answer = getattr(client, method)(
            f"/{route}?next=//elsewhere.example", headers={"Host": "localhost:8000"}
        )
        # Always a path of ours, without host or query.
        assert (answer.status_code, answer["Location"]) == (301, WITHOUT_SLASH[route])
    assert client.post(f"/{route}", headers={"Host": "localhost:8000"}).status_code in {403, 405}
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
        response = getattr(client, method)(filled(route), content_type="application/json")
        if response.status_code == 302:
            # Only to the sign-in; the admin site redirects by way of its start page.
            location = response["Location"]
            assert location == "/admin/" or location.startswith(("/sign-in/", "/admin/login/")), (
                method
            )
        elif response.status_code == 301:
            assert (method, response["Location"]) == ("get", WITHOUT_SLASH[route])
        elif response.status_code == 200:
            assert route in PUBLIC, method
        else:
            assert 400 <= response.status_code < 500, method
