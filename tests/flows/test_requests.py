"""Every address misused: foreign members, other methods, a foreign host, filters that attempt code.

Every row is compared with its state before: the test has its own database, and the application runs
in this process.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import pytest
from django.test import Client
from pytest_django.plugin import DjangoDbBlocker

from agentauth.middleware import ANY_HOST_PATHS
from agentauth.openapi.operation_types import FORM
from approvals.models import Passkey
from approvals.tests.cast import Person, browser
from audit.models import Event
from registry.models import Grant, Human, ServiceProvider
from registry.services.humans import create_human
from registry.services.service_providers import create_service_provider
from registry.tests.cast import READ_CALENDAR, TESTER, AgentClient, basic, pending
from registry.tests.written_rows import write_sealed
from tests.contract.stage import Stage, good
from tests.endpoints import OPERATIONS, ROUTES, address
from tests.flows.test_ownership import Cast
from tests.flows.test_ownership import cast as cast  # noqa: PLC0414 — a fixture
from tests.flows.test_ownership import parties as parties  # noqa: PLC0414 — a fixture
from tests.flows.test_sweep import refused_shape
from tests.rows import rows, rows_of_a_module

pytestmark = [pytest.mark.django_db, pytest.mark.sweep]

# Members that would gain rights, wherever careless code copies members into a row.
PROTECTED: dict[str, Any] = {
    "id": "00000000-0000-7000-8000-000000000007",
    "pk": 1,
    "is_staff": True,
    "is_superuser": True,
    "status": "approved",
    "state": "active",
    "human": "mallory",
    "human_id": "00000000-0000-7000-8000-000000000007",
    "agent_id": "00000000-0000-7000-8000-000000000007",
    "tenant_id": "x",
    "jkt": "x" * 43,
    "public_jwk": {},
    "valid_until": "2099-01-01T00:00:00Z",
    "expires_at": "2099-01-01T00:00:00Z",
    "version": 9,
    "grant_version": 9,
    "granted_capabilities": [{"type": "read", "resource": "everything"}],
    "scope": "write:everything",
    "subject": "mallory",
    "__class__": "x",
    "constructor": {"prototype": {"is_staff": True}},
    "__proto__": {"is_staff": True},
}


@pytest.fixture(scope="module")
def stage(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[Stage]:
    with rows_of_a_module(django_db_blocker):
        yield Stage(name="Other", audience="http://127.0.0.1:8003", email="other@x.example")


# Forms are left out: RFC 7009 and RFC 7662 require that their unknown members are ignored.
@pytest.mark.parametrize(
    "operation",
    [
        key
        for key, each in OPERATIONS.items()
        if not key.startswith("GET ") and FORM not in each.get("requestBody", {}).get("content", ())
    ],
)
def test_DJ_13_a_member_that_is_not_an_acts_own_is_refused_by_name(
    operation: str, stage: Stage
) -> None:
    call = good(stage, operation)
    before = rows()
    for name, value in PROTECTED.items():
        body = json.dumps(json.loads(call.body or b"{}") | {name: value}).encode()
        answer = stage.send(call, body=body)
        refused_shape(answer, f"{operation} {name}")
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), name
        assert name in answer.json()["error_description"], name
    assert rows() == before


def test_DJ_13_a_bad_item_of_a_batch_is_answered_in_its_place(cast: Cast) -> None:
    item = {"token": "x", "proof": "x", "method": "POST", "url": cast.provider.audience}
    body = {"requests": [item | {name: value} for name, value in PROTECTED.items()]}
    answer = browser().post(
        "/v1/verify/batch",
        json.dumps(body),
        content_type="application/json",
        headers=basic(cast.provider, cast.secret),
    )
    assert {each["error"] for each in answer.json()["results"]} == {"invalid_request"}


class Greedy(Person):
    """A user whose script adds every protected member to everything it posts."""

    def post(self, path: str, body: object = None) -> Any:
        assert body is None or isinstance(body, dict)
        return super().post(path, PROTECTED | (body or {}))


def test_DJ_13_nothing_a_page_is_sent_beside_its_own_members_has_an_effect(
    cast: Cast, now: datetime
) -> None:
    """All acts of a user on the pages, as `Greedy` posts them."""
    from approvals.services.setup_and_sign_in import create_setup_link

    person = Greedy()
    link = create_setup_link(email="greedy@x.example", actor=TESTER, now=now).url
    assert person.set_up(link, name="Greedy", email="other@x.example").status_code == 200
    assert person.sign_in().status_code == 200
    form = {name: str(value) for name, value in PROTECTED.items()} | {"time_zone": "Europe/Berlin"}
    assert person.client.post("/settings/time-zone", form).status_code == 302
    asked = pending(cast.bobs_agent, cast.provider, now=now)
    write_sealed(cast.bobs_agent.agent(), human=person.human)
    assert person.approve(asked).status_code == 200
    human = Human.objects.get(email="greedy@x.example")
    assert (human.is_staff, human.status, human.name) == (False, "active", "Greedy")
    assert Passkey.objects.get(human=human).user_handle
    grant = Grant.objects.get(pk=asked.pk)
    assert (grant.capabilities, grant.version) == ([READ_CALENDAR], 1)
    assert grant.valid_until is not None
    assert grant.valid_until.year < 2099
    assert not Human.objects.filter(pk=PROTECTED["id"]).exists()


# No address takes these.
OTHER_METHODS = ("PUT", "PATCH", "TRACE", "CONNECT", "MKCOL", "BREW")
# Answered where GET is.
ANSWERED = ("HEAD", "OPTIONS")


@pytest.mark.parametrize("of_six", [2, pytest.param(6, marks=pytest.mark.long)])
def test_every_method_at_every_address_is_answered_and_changes_nothing(
    of_six: int, cast: Cast
) -> None:
    """U1, U2, U5, as the rightful agent, service provider, user and administrator.

    `of_six`: how many of OTHER_METHODS each address is asked by, in turn.
    """
    ids, turns = cast.things[0], itertools.cycle(OTHER_METHODS)
    before = rows()
    for route in ROUTES:
        path = address(route, ids)
        for method in (*itertools.islice(turns, of_six), *ANSWERED):
            for answer in _rightful(cast, method, path):
                refused_shape(answer, f"{method} {path}")
                # 409: a page that resumes something not suspended.
                assert answer.status_code < 400 or answer.status_code in {
                    400,
                    401,
                    403,
                    404,
                    405,
                    409,
                    415,
                }, path
                # Django's admin shows its pages for any method; only POST acts.
                if method not in ANSWERED and not path.startswith("/admin/"):
                    assert answer.status_code >= 300, f"{method} {path}"
    assert rows() == before


def _rightful(cast: Cast, method: str, path: str) -> Iterator[Any]:
    kind = "application/json"
    if path.startswith("/v1/"):
        yield cast.alices_agent.call(method, path, b"{}")
        yield browser().generic(
            method, path, b"{}", content_type=kind, headers=basic(cast.provider, cast.secret)
        )
    elif path.startswith("/admin/"):
        yield cast.ada.client.generic(method, path, b"{}", content_type=kind)
    else:
        yield cast.alice.client.generic(method, path, b"{}", content_type=kind)


HOSTS = (
    "evil.example",
    "localhost.evil.example",
    "evil.example:8000",
    "localhost:8000@evil.example",
    "127.1",
    "[::]",
    "",
    " ",
    "a b",
)


def test_DJ_3_a_foreign_host_is_refused_at_every_address() -> None:
    routes = [route for route in ROUTES if address(route, {}) not in ANY_HOST_PATHS]
    assert len(routes) == len(ROUTES) - len(ANY_HOST_PATHS)
    for route, host in zip(routes, itertools.cycle(HOSTS), strict=False):
        answer = Client().get(address(route, {}), headers={"Host": host})
        assert answer.status_code == 400, route
        refused_shape(answer, route)
        assert answer.json()["error"] == "invalid_request"


METACHARACTERS = (
    "'",
    '"',
    "' OR '1'='1",
    "1; DROP TABLE registry_agent--",
    "x') OR 1=1--",
    "%",
    "_",
    "\\",
    "$where",
    "-id",
    "?",
    "*",
)


def test_DJ_12_no_filter_order_or_cursor_is_more_than_text(cast: Cast) -> None:
    before = rows()
    asked: list[tuple[Any, str, str]] = [
        *((cast.alices_agent, path, name) for path, name in _api_queries()),
        *(
            (cast.alice, path, name)
            for path in ("/activity/", "/approvals/")
            for name in ("agent", "after")
        ),
        *(
            (cast.ada, f"/admin/registry/{model}/", name)
            for model in ("agent", "grant", "human")
            for name in ("q", "o", "p", "status", "human__password__startswith")
        ),
    ]
    for (who, path, name), text in itertools.product(asked, METACHARACTERS):
        query = "?" + urlencode({name: text})
        answer = (
            who.call("GET", path, query=query)
            if isinstance(who, AgentClient)
            else who.get(path + query)
        )
        assert answer.status_code in {200, 302, 400, 403, 404}, f"{path}{query}"
    assert rows() == before


def _api_queries() -> Iterator[tuple[str, str]]:
    for name in ("agent", "kind", "after", "limit", "order", "data__x') OR 1=1--"):
        yield "/v1/audit/events", name
    for name in ("after", "limit", "status", "ordering"):
        yield "/v1/grants", name


VERIFY = b'{"token": "x", "proof": "x", "method": "GET", "url": "http://127.0.0.1:9/"}'


def test_U4_each_refusal_is_one_event_for_every_kind_of_caller(cast: Cast, now: datetime) -> None:
    create_human(email="x@x.example", name="X", actor=TESTER, now=now)
    stranger, secret = create_service_provider(
        name="S", audience="http://127.0.0.1:8009", allowed=(), actor=TESTER, now=now
    )
    calls: list[Callable[[], Any]] = [
        lambda: cast.alices_agent.call("POST", "/v1/tokens", {"grant_id": "x"}),
        lambda: cast.alices_agent.call("POST", "/v1/grants", {"x": 1}),
        lambda: cast.alices_agent.call("GET", "/v1/agents/me", proof="x"),
        lambda: _with(stranger, secret, b"{"),
        lambda: _with(stranger, "wrong", VERIFY),
        lambda: _with(stranger, secret, VERIFY),
        lambda: cast.alice.get("/approvals/00000000-0000-7000-8000-000000000007/"),
        lambda: cast.alice.post("/settings/time-zone", {"time_zone": "x"}),
        lambda: browser().get("/setup/x/"),
        lambda: browser().post("/sign-in/finish", "{}", content_type="application/json"),
    ]
    for number, call in enumerate(calls):
        before = Event.objects.count()
        call()
        assert Event.objects.count() == before + 1, number


def _with(provider: ServiceProvider, secret: str, body: bytes) -> Any:
    return browser().post(
        "/v1/verify", body, content_type="application/json", headers=basic(provider, secret)
    )
