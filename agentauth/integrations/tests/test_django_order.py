"""Other middleware of a Django project: what it answers itself, and where it leads a request."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import got_request_exception
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from agentauth.integrations.tests.cases import refused
from agentauth.integrations.tests.conformance import SECRET, Integration, Site, running
from agentauth.integrations.tests.django_site import check, start

HERE = __name__
OURS = "agentauth.integrations.django.AgentAuthMiddleware"
SECURITY = "django.middleware.security.SecurityMiddleware"
Respond = Callable[[HttpRequest], HttpResponseBase]


def answering(get_response: Respond) -> Respond:
    """Answers itself: for a file, for a path with a view, and instead of Django's 404 page."""

    def respond(request: HttpRequest) -> HttpResponseBase:
        if request.path in {"/static/report", "/plain"}:
            return HttpResponse(SECRET)
        response = get_response(request)
        return HttpResponse(SECRET) if response.status_code == 404 else response

    return respond


def moving(get_response: Respond) -> Respond:
    """Leads `/old/...` to another path."""

    def respond(request: HttpRequest) -> HttpResponseBase:
        request.path_info = request.path_info.replace("/old/", "/calendar/")
        return get_response(request)

    return respond


def renaming(get_response: Respond) -> Respond:
    """Leads every calendar to the same one."""

    def respond(request: HttpRequest) -> HttpResponseBase:
        if request.path_info.startswith("/calendar/"):
            request.path_info = "/calendar/home"
        return get_response(request)

    return respond


def overriding(get_response: Respond) -> Respond:
    """Takes the method from a header, as for clients that can send only GET and POST."""

    def respond(request: HttpRequest) -> HttpResponseBase:
        request.method = request.headers.get("X-HTTP-Method-Override", request.method)
        return get_response(request)

    return respond


class OverridingLate:
    """The same, between our process_view and the view."""

    def __init__(self, get_response: Respond) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *_: object) -> None:
        request.method = request.headers.get("X-HTTP-Method-Override", request.method)


def site_of(**arguments: Any) -> Any:
    started = partial(start, middleware="AgentAuthMiddleware", **arguments)
    return running(Integration("ordered", started, frozenset()))


@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("path", ["/static/report", "/plain", "/nothing-here"])
def test_answer_of_a_later_middleware_is_checked_first(path: str, asgi: bool) -> None:
    with site_of(after=(f"{HERE}.answering",), asgi=asgi) as site:
        for method in ("GET", "HEAD", "POST"):
            assert site.ask(method, path).status_code == 401
        refused(site.ask_as("bad", "GET", path), 401, "invalid_token")
        answer = site.ask_as("good", "GET", path)
        assert (answer.status_code, answer.text) == (200, SECRET)
        assert "private" in answer.headers["Cache-Control"]


def test_middleware_in_front_of_the_check_stops_the_start() -> None:
    with (
        pytest.raises(ImproperlyConfigured, match="answering stands before AgentAuthMiddleware"),
        site_of(before=(f"{HERE}.answering",)),
    ):
        pytest.fail("it started")


def test_named_middleware_may_stand_before_and_is_not_checked() -> None:
    named = (f"{HERE}.answering",)
    with site_of(before=(SECURITY, *named), unchecked=named) as site:
        assert site.ask("GET", "/static/report").text == SECRET
        refused(site.ask("GET", "/calendar/work"), 401, "invalid_token")
        assert site.registry.asked == []


def moved(site: Site, path: str) -> tuple[int, list[Any]]:
    answer = site.ask_as("good", "GET", path)
    acts = [each.get("action", {}).get("resource") for each in site.registry.asked]
    assert (SECRET in answer.text) == (answer.status_code == 200)
    return answer.status_code, acts


@pytest.mark.parametrize(
    ("middleware", "path", "resource"),
    [("moving", "/old/work", "calendar/work"), ("renaming", "/calendar/work", "calendar/home")],
)
def test_view_that_was_not_checked_does_not_run(middleware: str, path: str, resource: str) -> None:
    given, said = (f"{HERE}.{middleware}",), list[str]()

    def note(**_: object) -> None:
        said.append(str(sys.exc_info()[1]))

    got_request_exception.connect(note)
    with site_of(after=given) as site:
        assert moved(site, path)[0] == 500
    got_request_exception.disconnect(note)
    assert "UNCHECKED_MIDDLEWARE" in said[0]
    # Before the check, it is the moved request that is judged.
    with site_of(before=given, unchecked=given) as site:
        assert moved(site, path) == (200, [resource])


@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("path", ["/calendar/work", "/undecorated"])
def test_view_does_not_run_for_a_method_that_was_not_checked(path: str, asgi: bool) -> None:
    given, said = (f"{HERE}.overriding",), list[str]()

    def note(**_: object) -> None:
        said.append(str(sys.exc_info()[1]))

    got_request_exception.connect(note)
    with site_of(after=given, asgi=asgi) as site:
        answer = site.ask_as("good", "GET", path, X_HTTP_Method_Override="DELETE")
        assert (answer.status_code, SECRET in answer.text) == (500, False)
        assert site.ask_as("good", "GET", path).status_code == 200
    got_request_exception.disconnect(note)
    assert "changed the request's method" in said[0]
    # Before the check, it is the changed method that is judged.
    with site_of(before=given, unchecked=given) as site:
        site.ask_as("good", "GET", path, X_HTTP_Method_Override="POST")
        assert site.registry.asked[0]["method"] == "POST"


@pytest.mark.parametrize("middleware", ["AgentAuthMiddleware", "ProtectedMiddleware"])
def test_protected_view_notices_another_method_after_process_view(middleware: str) -> None:
    started = partial(start, middleware=middleware, after=(f"{HERE}.OverridingLate",))
    with running(Integration("late", started, frozenset())) as site:
        answer = site.ask_as("good", "GET", "/calendar/work", X_HTTP_Method_Override="DELETE")
        assert (answer.status_code, SECRET in answer.text) == (500, False)
        assert site.ask_as("good", "GET", "/calendar/work").status_code == 200


def test_check_names_the_middleware_that_stops_the_start() -> None:
    common = "django.middleware.common.CommonMiddleware"
    good, bad = check(SECURITY, OURS, common), check(SECURITY, common, OURS)
    assert good.returncode == 0, good.stderr
    assert bad.returncode == 1
    assert f"{common} stands before" in bad.stderr
    assert "agentauth_sdk.E002" in bad.stderr
