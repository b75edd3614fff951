"""Every address: nothing opens without credentials, no one reaches another's data, nothing fails.

Every row is compared with its state before: the test has its own database, and the application runs
in this process. tests/production/test_sweep.py makes the calls that a system in use by other tests
allows.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import Client
from pytest_django.plugin import DjangoDbBlocker

from approvals.models import Passkey
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.tests.cast import Person, browser, invited, signed_in
from audit.checkpoints.signing import checkpoint_log
from audit.services import seal_audit
from kms.services import ensure_key
from registry.models import ServiceProvider
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, approved, basic, enrolled, issue, pending
from tests.endpoints import METHODS, OPERATIONS, PUBLIC_PATHS, ROUTES, address, allowed
from tests.rows import rows, rows_of_a_module
from tests.sampling import one_in

pytestmark = [pytest.mark.django_db, pytest.mark.sweep]


# Forms whose page comes again with the error and what was typed.
SHOWN_AGAIN = {
    r"/settings/absences": "absence-error",
    r"/settings/passkeys/[^/]+/rename": "name-error",
}


def refused_shape(answer: Any, place: str) -> None:
    """U1, U2, U5."""
    assert answer.status_code < 500, place
    path = answer.request["PATH_INFO"]
    is_page = answer.headers.get("Content-Type", "").startswith("text/html")
    again = [error for form, error in SHOWN_AGAIN.items() if is_page and re.fullmatch(form, path)]
    if answer.status_code == 400 and again:
        assert f'id="{again[0]}"' in answer.content.decode(), place
    elif answer.status_code >= 400 and answer.request["REQUEST_METHOD"] != "HEAD":
        body = json.loads(answer.content)
        assert body["error"], place
        assert body["error_description"], place
        assert len(answer.content) <= 1024, place
    if path not in PUBLIC_PATHS or answer.status_code >= 400:
        assert (
            answer["Cache-Control"].find("no-store") >= 0 or "private" in answer["Cache-Control"]
        ), place
    assert "frame-ancestors 'none'" in answer["Content-Security-Policy"], place
    assert answer["X-Request-Id"], place


def test_DJ_15_without_credentials_nothing_opens_but_the_listed(
    alice_at: "Scene", settings: Any, now: datetime
) -> None:
    # In development /metrics is open on this machine; otherwise it requires its token.
    settings.METRICS_TOKEN = "only-the-collector-knows"
    seal_audit(now=now)
    checkpoint_log(now=now)
    before = rows()
    for route in ROUTES:
        path = address(route, alice_at.ids)
        for method in METHODS:
            answer = browser().generic(method, path, "{}", content_type="application/json")
            place = f"{method} {path} {answer.status_code}"
            refused_shape(answer, place)
            assert answer.status_code in allowed(method, route), place
            if answer.status_code == 302:
                # To the sign-in and nowhere else; the admin site redirects twice.
                assert answer["Location"].startswith(("/sign-in/?next=%2F", "/admin/")), place
        assert rows() == before, route


class Scene:
    """What alice owns, by the names routes use."""

    def __init__(self, now: datetime, person: Person, provider: ServiceProvider) -> None:
        self.person = person
        self.client = enrolled(person.human, now=now)
        self.grant = approved(self.client, provider, now=now)
        self.waiting = pending(
            self.client, provider, now=now, capabilities=[{"type": "write", "resource": "files"}]
        )
        self.ids = {
            "grant_id": str(self.grant.pk),
            "agent_id": str(self.client.agent().pk),
            "passkey_id": str(Passkey.objects.get(human=person.human).pk),
        }


@dataclass(frozen=True)
class Users:
    """Alice and Bob, and the service provider of their grants with its secret."""

    alice: Scene
    bob: Scene
    provider: tuple[ServiceProvider, str]


@pytest.fixture(scope="module")
def users(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[Users]:
    now = datetime.now(UTC)
    with rows_of_a_module(django_db_blocker):
        for purpose in ("token", "receipt", "audit"):
            ensure_key(purpose=purpose, actor=TESTER, now=now)
        provider, secret = create_service_provider(
            name="Acme",
            audience="http://127.0.0.1:8001",
            allowed=("read:calendar", "write:files"),
            actor=TESTER,
            now=now,
        )
        alice, bob = (
            Scene(now, invited(f"{name}@x.example", name, now=now), provider)
            for name in ("Alice", "Bob")
        )
        yield Users(alice, bob, (provider, secret))


@pytest.fixture
def alice_at(users: Users) -> Iterator[Scene]:
    with signed_in(users.alice.person):
        yield users.alice


@pytest.fixture
def bob_at(users: Users) -> Iterator[Scene]:
    with signed_in(users.bob.person):
        yield users.bob


def test_DJ_14_another_service_provider_learns_nothing_of_a_token(
    alice_at: Scene, now: datetime
) -> None:
    """VB-2 and RV-8: a foreign provider asks about it, revokes it, reads its receipt."""
    token = issue(alice_at.client, alice_at.grant).json()["access_token"]
    stranger, secret = create_service_provider(
        name="Mallory",
        audience="http://127.0.0.1:8002",
        allowed=["read:calendar"],
        actor=TESTER,
        now=now,
    )
    headers, before = basic(stranger, secret), rows()
    body = {"token": token, "method": "GET", "url": "http://127.0.0.1:8002/x", "proof": "x"}
    asked = Client().post(
        "/v1/verify", json.dumps(body), content_type="application/json", headers=headers
    )
    assert (asked.status_code, asked.json()["reason"]) == (200, "unknown")
    form = "application/x-www-form-urlencoded"
    assert (
        Client()
        .post("/v1/revoke", f"token={token}", content_type=form, headers=headers)
        .status_code
        == 200
    )
    receipt = Client().get(f"/v1/grants/{alice_at.grant.pk}/receipt", headers=headers)
    assert receipt.status_code == 404
    assert Client().get("/v1/audit/events", headers=headers).status_code == 403
    assert rows() == before


def test_DJ_16_non_admin_user_cannot_open_any_admin_route(bob_at: Scene) -> None:
    before = rows()
    for route in [route for route in ROUTES if route.startswith("/admin/")]:
        for method in ("GET", "POST"):
            answer = bob_at.person.client.generic(
                method, address(route, {}), "{}", content_type="application/json"
            )
            assert answer.status_code in {302, 404, 405}, route
            if answer.status_code == 302:
                assert answer["Location"].startswith(
                    ("/admin/", "/sign-in/", "/approvals/", "/settings/")
                )
    assert rows() == before


MEMBERS = [
    "choices",
    "drawn",
    "decision",
    "credential",
    "code",
    "name",
    "email",
    "manifest",
    "grant_id",
    "service_provider",
    "capabilities",
    "envelope",
    "reason",
    "lifetime_seconds",
    "enrolment_code",
    "token",
    "proof",
    "method",
    "url",
    "action",
    "idempotency_key",
    "dry_run",
    "time_zone",
    "language",
]
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "not json": b"{",
    "array": b"[]",
    "null": b"null",
    "number": b"1" * 5000,
    "big exponent": b'{"choices": 1e400}',
    "nan": b'{"drawn": NaN}',
    "nul": b'{"drawn": "\\u0000", "code": "\\u0000", "name": "\\u0000", "grant_id": "\\u0000"}',
    "surrogate": b'{"drawn": "\\ud800", "code": "\\udfff", "name": "\\ud800", "email": "\\ud800"}',
    "not utf-8": b'{"name": "\xff\xfe"}',
    "bom": b'\xef\xbb\xbf{"name": "x"}',
    "utf-16": '{"name": "x"}'.encode("utf-16"),
    "twice": b'{"name": "x", "name": "y"}',
    "deep": b'{"choices": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "long": b'{"name": "' + b"x" * 70_000 + b'"}',
    "wrong types": json.dumps(
        {name: [{"a": [1, None, True, -0.5, 2**53 - 1]}] for name in MEMBERS}
    ).encode(),
    "credential of the wrong shape": (
        b'{"credential": {"type": "public-key", "id": 1, "rawId": [], "response": []}}'
    ),
    "credential of empty parts": (
        b'{"credential": {"type": "public-key", "id": "AA", "rawId": "AA", "response": '
        b'{"clientDataJSON": "", "authenticatorData": "AA", "signature": null}}}'
    ),
}
TYPES = (
    "application/json",
    "text/plain",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
)


@pytest.mark.parametrize(
    "route", one_in(3, (route for route in ROUTES if not route.startswith("/admin/")))
)
def test_DJ_8_no_body_makes_any_address_fail(
    route: str, alice_at: Scene, users: Users, now: datetime
) -> None:
    """As the rightful caller: others are refused before the body is read."""
    code = create_setup_link(email="new@n.example", actor=TESTER, now=now).url.split("/")[-2]
    ids = alice_at.ids | {"grant_id": str(alice_at.waiting.pk), "code": code}
    path = address(route, ids)
    for name, body in HOSTILE.items():
        for kind in TYPES if name in {"not json", "nul", "nothing"} else TYPES[:1]:
            for answer in _asked(path, body, kind, alice_at, users.provider):
                place = f"{path} {name} {kind} {answer.status_code} {answer.content[:200]!r}"
                assert answer.status_code < 500, place
                if answer.status_code >= 400:
                    refused_shape(answer, place)


def _asked(
    path: str, body: bytes, kind: str, alice: Scene, provider: tuple[ServiceProvider, str]
) -> Iterator[Any]:
    if not path.startswith("/v1/"):
        yield alice.person.client.generic("POST", path, body, content_type=kind)
        yield browser().generic("POST", path, body, content_type=kind)
        return
    proof = alice.client.proof("POST", path, body)
    yield browser().generic("POST", path, body, content_type=kind, headers={"DPoP": proof})
    yield Client().generic("POST", path, body, content_type=kind, headers=basic(*provider))


def test_DJ_7_a_body_of_many_megabytes_is_not_read_to_its_end(
    users: Users,
) -> None:
    """A service provider authenticates by header, so its body meets the parser first."""
    taking = [
        (key.split(" "), kind)
        for key, operation in OPERATIONS.items()
        if {"basic": []} in operation["security"]
        for kind in operation.get("requestBody", {}).get("content", ())
    ]
    assert len(taking) >= 4
    for (_, path), kind in taking:
        body = b"token=" + b"x" * 3_000_000
        answer = Client().post(path, body, content_type=kind, headers=basic(*users.provider))
        assert (answer.status_code, answer.json()["error"]) == (413, "request_too_large")
