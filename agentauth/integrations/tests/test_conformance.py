"""One suite for every framework integration: nothing protected is answered without a check,
whatever caches exist.
"""

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from agentauth.integrations.tests.cases import CASES, refused
from agentauth.integrations.tests.conformance import (
    AUDIENCE,
    OPEN,
    SAYS,
    SECRET,
    Integration,
    Site,
    running,
    verifying,
    yes,
)
from agentauth.integrations.tests.integrations import INTEGRATIONS
from tests.conftest import CAMPAIGN
from tests.vectors import adapter
from tests.vectors.shared import cases, load

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


def conditions(number: int) -> tuple[dict[str, str], ...]:
    """What is asked of the path with this number: two of CONDITIONS in CI, which differ from path
    to path.
    """
    return CONDITIONS if CAMPAIGN else (CONDITIONS[0], CONDITIONS[1 + number % 4])


APPLICABLE = [
    pytest.param(each, title, id=f"{each.name}: {title}")
    for each in INTEGRATIONS
    for title in CASES
    if title not in each.leaves_out
]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """The traceback of the view that fails, and of verify when it is down, is not logged."""
    for name in (
        "django.request",
        "uvicorn.error",
        "agentauth.integrations.refusals_and_caching",
        "flask_site",
    ):
        caplog.set_level(logging.CRITICAL + 1, name)


@pytest.fixture(params=EACH)
def site(request: pytest.FixtureRequest, quiet: None) -> Iterator[Site]:
    with running(request.param) as made:
        yield made


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("integration", "title"), APPLICABLE)
def test_an_integration_passes_the_case(integration: Integration, title: str) -> None:
    with running(integration) as site:
        CASES[title](site)


def test_a_case_is_left_out_by_its_title_alone() -> None:
    for each in INTEGRATIONS:
        assert each.leaves_out.keys() <= CASES.keys()


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
    for number, path in enumerate(sorted(site.resources | SAYS.keys())):
        warmed(site, path)
        for condition in conditions(number):
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
    for number, path in enumerate(sorted(site.resources | SAYS.keys())):
        for condition in conditions(number):
            answer = site.ask_as("good", method, path, **condition)
            assert (answer.status_code, SECRET in answer.text) == (401, False), (path, condition)


@pytest.mark.parametrize("method", METHODS)
def test_SA_5_each_answer_is_asked_for_once(site: Site, method: str) -> None:
    """Also an answer from a cache within the check, and a 304; no proof is spent twice."""
    for number, path in enumerate(sorted(site.resources)):
        for condition in (*conditions(number), {}):
            before = len(site.registry.asked)
            answer = site.ask_as("good", method, path, **condition)
            assert answer.status_code in {200, 304, 412, FAILURES.get(path)}, (path, condition)
            [asked] = site.registry.asked[before:]
            assert (asked["method"], asked["url"]) == (method, f"https://api.sp.example{path}")


@pytest.mark.parametrize("method", METHODS)
def test_SA_5_protected_answers_are_private_and_not_stored(site: Site, method: str) -> None:
    # A cache of the framework within the check sets its own headers.
    for number, path in enumerate(
        sorted(site.resources - {"/cache-inside", "/template", "/cache-around-undecorated"})
    ):
        for condition in conditions(number):
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


@pytest.mark.parametrize(
    "integration", [pytest.param(each, id=each.name) for each in INTEGRATIONS if each.in_front]
)
def test_SA_5_it_does_not_start_behind_a_cache(integration: Integration) -> None:
    with verifying() as registry:
        for name, start in integration.in_front.items():
            with pytest.raises(Exception, match="cache"), start(registry.url):
                pytest.fail(f"{name}: it started")


# ---- the vectors of DPoP proofs

# A server refuses the line feed before the application sees it.
HELD_BACK = {"DP-93"}
VECTORS = [each for each in cases("own_dpop_cases") if each.id not in HELD_BACK]


def judged(site: Site) -> None:
    """Verify judges token and proof of the vectors at their time, as the registry does."""
    doc, memory = load("own_dpop_cases"), adapter.ReplayMemory()

    def says(asked: dict[str, Any]) -> dict[str, Any]:
        seen = {
            "authorization": [f"DPoP {asked['token']}"],
            "dpop": [asked["proof"]],
            "method": asked["method"],
            "url": asked["url"],
            "now": doc["now"],
        }
        error = adapter.outcome(lambda: adapter.present(doc, seen, memory))
        if error is None:
            return yes("good")
        return {"valid": False, "error": error.code, "reason": error.reason}

    site.registry.says = says


def sent(site: Site, vector: dict[str, Any]) -> httpx.Response:
    lines = [("Authorization", each) for each in vector["authorization"]]
    lines += [("DPoP", each) for each in vector["dpop"]]
    target = vector["url"].removeprefix(AUDIENCE)
    return site.raw(vector["method"], target, [*lines, ("Content-Length", "0")])


@pytest.mark.vectors
def test_the_vectors_of_proofs_have_their_outcome(site: Site) -> None:
    """One server for all of them: 73 over real HTTP."""
    assert len(VECTORS) == 73
    for vector in (each.values[0] for each in VECTORS):
        assert isinstance(vector, dict)
        judged(site)
        for earlier in load("own_dpop_cases")["cases"]:
            if earlier["id"] == vector.get("after"):
                assert sent(site, earlier).status_code == 200
        answer = sent(site, vector)
        if vector["expect"] == "accept":
            assert (answer.status_code, SECRET in answer.text) == (200, True), vector["id"]
            continue
        # protocol.md is newer than the file: an absent proof is a wrong proof.
        wanted = {"DP-1": "invalid_dpop_proof"}.get(vector["id"], vector["error"])
        error = answer.json()["error"]
        assert error in {wanted, *vector.get("error_alt", [])}, vector["id"]
        refused(answer, 400 if error == "invalid_request" else 401, error)
