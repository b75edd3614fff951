"""One suite for every framework integration: nothing protected is answered without a check,
whatever caches exist.
"""

import logging
from collections.abc import Iterator

import pytest

from agentauth.integrations.tests import django_site
from agentauth.integrations.tests.sites import OPEN, SAYS, SECRET, Integration, Site, verifying

INTEGRATIONS: tuple[Integration, ...] = django_site.INTEGRATIONS
EACH = [pytest.param(each, id=each.name) for each in INTEGRATIONS]
METHODS = ("GET", "HEAD")
FAILURES = {"/missing": 404, "/broken": 500}
CONDITIONS: tuple[dict[str, str], ...] = (
    {},
    {"If_None_Match": '"v1"'},
    {"If_None_Match": "*"},
    {"If_Modified_Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
    {"If_Match": '"other"'},
)


@pytest.fixture(params=EACH)
def site(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Site]:
    integration: Integration = request.param
    # The body of the view that fails.
    caplog.set_level(logging.CRITICAL, "django.request")
    with verifying() as registry, integration.start(registry.url) as client:
        yield Site(client, registry, integration.resources)


def directives(cache_control: str) -> set[str]:
    return {each.strip() for each in cache_control.split(",")}


def warmed(site: Site, path: str) -> None:
    """Every cache has had two chances to store an answer of each kind."""
    for _ in range(2):
        for method in METHODS:
            found = site.ask_as("good", method, path)
            assert found.status_code == FAILURES.get(path, 200), path


@pytest.mark.parametrize("method", METHODS)
def test_SA_5_nothing_protected_is_answered_without_a_check(site: Site, method: str) -> None:
    for path in sorted(site.resources | SAYS.keys()):
        warmed(site, path)
        for condition in CONDITIONS:
            strangers = (
                site.ask(method, path, **condition),
                site.ask(method, path, Authorization="DPoP good", **condition),
                site.ask(method, path, Authorization="Bearer good", DPoP="a.b.c", **condition),
            )
            before = len(site.registry.asked)
            refused = (
                site.ask(method, path, Authorization="DPoP good", DPoP="proof.1.x", **condition),
                site.ask_as("bad", method, path, **condition),
            )
            assert len(site.registry.asked) == before + len(refused), path
            for answer in strangers + refused:
                assert answer.status_code == 401, (path, condition)
                assert SECRET not in answer.text
                assert "ETag" not in answer.headers
                assert "no-store" in answer.headers["Cache-Control"]


@pytest.mark.parametrize("method", METHODS)
def test_SA_5_a_revocation_counts_at_the_next_request(site: Site, method: str) -> None:
    for path in sorted(site.resources | SAYS.keys()):
        warmed(site, path)
    site.registry.revoked = True
    for path in sorted(site.resources | SAYS.keys()):
        for condition in CONDITIONS:
            answer = site.ask_as("good", method, path, **condition)
            assert (answer.status_code, SECRET in answer.text) == (401, False), (path, condition)


@pytest.mark.parametrize("method", METHODS)
def test_SA_5_each_answer_is_asked_for_once(site: Site, method: str) -> None:
    """Also an answer from a cache within the check, and a 304; no proof is spent twice."""
    for path in sorted(site.resources):
        for condition in (*CONDITIONS, {}):
            before = len(site.registry.asked)
            answer = site.ask_as("good", method, path, **condition)
            assert answer.status_code in {200, 304, 412, FAILURES.get(path)}, (path, condition)
            [asked] = site.registry.asked[before:]
            assert (asked["method"], asked["url"]) == (method, f"https://api.sp.example{path}")


@pytest.mark.parametrize("method", METHODS)
def test_SA_5_protected_answers_are_private_and_not_stored(site: Site, method: str) -> None:
    # A cache of the framework within the check sets its own headers.
    for path in sorted(
        site.resources - {"/cache-inside", "/template", "/cache-around-undecorated"}
    ):
        for condition in CONDITIONS:
            answer = site.ask_as("good", method, path, **condition)
            assert directives(answer.headers["Cache-Control"]) == {"private", "no-store"}, (
                path,
                condition,
            )
    for path in sorted(
        site.resources & {"/cache-inside", "/template", "/cache-around-undecorated"}
    ):
        for _ in range(2):
            answer = site.ask_as("good", method, path)
            assert "private" in directives(answer.headers["Cache-Control"]), path
            assert "public" not in answer.headers["Cache-Control"]


def test_SA_5_a_view_may_say_otherwise(site: Site) -> None:
    for path, (_, becomes) in SAYS.items():
        for _ in range(2):
            answer = site.ask_as("good", "GET", path)
            assert becomes <= directives(answer.headers["Cache-Control"]), path
            assert ("public" in answer.headers["Cache-Control"]) == ("public" in becomes)
            assert "no-store" not in answer.headers["Cache-Control"]


def test_SA_5_no_agent_gets_an_answer_made_for_another(site: Site) -> None:
    for path in sorted(site.resources - FAILURES.keys()):
        for agent in ("good-a", "good-b", "good-a"):
            assert site.ask_as(agent, "GET", path).text == f"{SECRET}: {agent}", path


def test_SA_5_no_cache_hands_on_a_nonce(site: Site) -> None:
    for path in sorted(site.resources | SAYS.keys()):
        for nonce in ("n1", None):
            site.registry.nonce = nonce
            answer = site.ask_as("good", "GET", path)
            assert answer.headers.get("DPoP-Nonce") == nonce, path


def test_SA_5_open_pages_are_cached_as_before(site: Site) -> None:
    first, second = site.ask("GET", OPEN), site.ask("GET", OPEN)
    assert first.status_code == 200
    assert first.text == second.text
    assert directives(first.headers["Cache-Control"]) == {"max-age=3600"}
    assert site.registry.asked == []


@pytest.mark.parametrize("integration", EACH)
def test_SA_5_it_does_not_start_behind_a_cache(integration: Integration) -> None:
    assert integration.in_front
    with verifying() as registry:
        for name, start in integration.in_front.items():
            with pytest.raises(Exception, match="cache"), start(registry.url):
                pytest.fail(f"{name}: it started")
