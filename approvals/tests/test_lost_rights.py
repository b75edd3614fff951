"""Users who lose the right to decide midway: suspended, deleted, signed out, no owner or admin any
more.
"""

import json
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from django.utils import timezone

from agentauth.protocol.errors import NotFoundError
from approvals.models import Receipt, SetupCode
from approvals.services import grant_decision_signing
from approvals.services.decidable_requests import find_open_case
from approvals.services.human_suspension_and_erasure import delete_human
from approvals.sessions import stored_key
from approvals.tests.cast import PAY, Person, registered, waiting_confirmation
from approvals.tests.recovering import ready_link, recovered
from audit.services import Actor
from registry.models import (
    CatalogueVersion,
    EnrolmentCode,
    Grant,
    Human,
    ServiceProvider,
    ServiceProviderSecret,
)
from registry.services.humans import end_sessions, suspend_human
from registry.tests.cast import TESTER, AgentClient, approve, assert_refused, claim_link, pending
from registry.tests.written_rows import write_sealed
from tests.endpoints import writing

pytestmark = pytest.mark.django_db

LOSSES: dict[str, Callable[[Human, datetime], object]] = {
    "suspended": lambda human, now: suspend_human(human=human, actor=TESTER, now=now),
    "deleted": lambda human, now: delete_human(human=human, actor=TESTER, now=now),
    # The state alone is enough, however the row came to have it.
    "suspended by its row alone": lambda human, _now: Human.objects.filter(pk=human.pk).update(
        status=Human.Status.SUSPENDED
    ),
    "signed out everywhere": lambda human, now: end_sessions(human=human, actor=TESTER, now=now),
    "recovered": lambda human, now: recovered(ready_link(human, now)),
}
losses = pytest.mark.parametrize("loss", LOSSES)


def lose(person: Person, loss: str, now: datetime) -> None:
    LOSSES[loss](person.human, now)


def gone(person: Person, path: str, body: dict[str, Any]) -> None:
    """Scripts and pages go to the sign-in, reveal nothing more, and sign nothing."""
    before = Receipt.objects.count()
    assert_refused(person.post(path, body), 401, "sign_in_required")
    page = person.get(path.rpartition("/")[0] + "/")
    assert page.status_code == 302
    assert page["Location"].startswith("/sign-in/?next=")
    assert Receipt.objects.count() == before


@losses
@pytest.mark.parametrize("decision", ["approve", "deny"])
def test_AP_9_user_who_lost_access_cannot_use_a_page_drawn_before(
    alice: Person, reading: Grant, now: datetime, loss: str, decision: str
) -> None:
    options = alice.statement(reading, decision).json()["publicKey"]
    signed = alice.device.assertion(options)
    lose(alice, loss, now)
    gone(alice, f"/approvals/{reading.pk}/decide", {"credential": signed})
    assert Grant.objects.get().status in {"pending", "withdrawn"}


@losses
def test_AP_9_who_may_no_longer_come_in_claims_nothing(
    alice: Person, now: datetime, loss: str
) -> None:
    client = AgentClient()
    client.register()
    url, code = claim_link(client.agent())
    path = url.removeprefix("http://localhost:8000")
    options = alice.press_on(path, code=code).json()["publicKey"]
    signed = alice.device.assertion(options)
    lose(alice, loss, now)
    gone(alice, f"{path}decide", {"credential": signed})
    assert client.agent().status == "unclaimed"


@losses
def test_AP_9_who_may_no_longer_come_in_confirms_nothing(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime, loss: str
) -> None:
    paid = approve(
        pending(agent, service_provider, now=now, capabilities=[PAY]), alice.human, now=now
    )
    row = waiting_confirmation(paid, now)
    path = f"/confirmations/{row.pk}/"
    options = alice.press_on(path, decision="confirm").json()["publicKey"]
    signed = alice.device.assertion(options)
    lose(alice, loss, now)
    gone(alice, f"{path}decide", {"credential": signed})
    row.refresh_from_db()
    assert row.status == "pending"


@pytest.mark.parametrize("loss", ["suspended", "signed out everywhere"])
@pytest.mark.parametrize("decision", ["approve", "deny"])
def test_AP_9_a_loss_while_the_request_is_under_way_is_a_loss(
    alice: Person, reading: Grant, now: datetime, loss: str, decision: str
) -> None:
    """The session was valid when the request arrived; the act is judged at its commit."""
    options = alice.statement(reading, decision).json()["publicKey"]
    came_in = alice.human
    case = find_open_case(reading.pk, came_in, now)
    session_key = stored_key(str(alice.client.session.session_key))
    lose(alice, loss, now)
    with pytest.raises(NotFoundError):
        grant_decision_signing.decide(
            case,
            session_key=session_key,
            credential=alice.device.assertion(options),
            actor=Actor("human", str(came_in.pk)),
            now=timezone.now(),
        )
    assert Grant.objects.get().status == "pending"
    assert not Receipt.objects.exists()


def test_AP_9_former_owner_gets_the_same_answer_as_for_an_unknown_id(
    alice: Person, bob: Person, reading: Grant, now: datetime
) -> None:
    options = alice.statement(reading).json()["publicKey"]
    drawn, signed = alice.drawn(reading), alice.device.assertion(options)
    write_sealed(reading.agent, human=bob.human)
    nobodys = uuid.UUID(int=7)
    for act, body in (
        ("decide", {"credential": signed}),
        ("statement", {"choices": {}, "drawn": drawn, "decision": "approve"}),
        ("review", {"choices": {}, "drawn": drawn}),
        ("second-step", {"choices": {}, "drawn": drawn}),
    ):
        mine = alice.post(f"/approvals/{reading.pk}/{act}", body)
        unknown = alice.post(f"/approvals/{nobodys}/{act}", body)
        assert (mine.status_code, mine.content) == (unknown.status_code, unknown.content)
        assert_refused(mine, 404, "not_found")
    assert Grant.objects.get().status == "pending"


PROVIDER = "/admin/service-providers/<uuid:service_provider_id>/"
ACTS: dict[str, dict[str, str]] = {
    "/admin/invite/": {"email": "new@example.org"},
    "/admin/humans/<uuid:human_id>/role/": {"role": "owner", "shown_role": ""},
    "/admin/enrolment-code/": {"human": "alice"},
    "/admin/new-service-provider/": {"name": "Beta", "audience": "http://127.0.0.1:8004"},
    "/admin/new-catalogue/": {"document": "{}"},
    f"{PROVIDER}change/": {"audience": "http://127.0.0.1:8005"},
    f"{PROVIDER}rotate-secret/": {},
    f"{PROVIDER}end-previous-secrets/": {},
}


def made() -> list[object]:
    models = (SetupCode, EnrolmentCode, ServiceProvider, ServiceProviderSecret, CatalogueVersion)
    rows: list[object] = [model._default_manager.count() for model in models]
    rows += ServiceProvider.objects.order_by("pk").values_list("audience", "allowed")
    people = ("email", "status", "session_epoch", "admin_role")
    return [*rows, *Human.objects.order_by("email").values_list(*people)]


@pytest.fixture
def another_admin(keys: None, now: datetime) -> None:
    """The last administrator could not be suspended."""
    registered("another@example.org", "Another", now=now, is_staff=True)


@pytest.mark.usefixtures("another_admin")
@pytest.mark.parametrize("path", ACTS)
@pytest.mark.parametrize("loss", ["no longer staff", "suspended", "signed out everywhere"])
def test_AP_9_DJ_16_former_admin_cannot_use_an_earlier_signature(
    admin: Person, alice: Person, reading: Grant, now: datetime, path: str, loss: str
) -> None:
    fields = {
        name: str(alice.human.pk) if name == "human" else value
        for name, value in ACTS[path].items()
    }
    path = path.replace("<uuid:service_provider_id>", str(reading.service_provider_id))
    path = path.replace("<uuid:human_id>", str(alice.human.pk))
    signed = json.dumps(admin.verification(path))
    if loss == "no longer staff":
        Human.objects.filter(pk=admin.human.pk).update(is_staff=False)
    else:
        lose(admin, loss, now)
    before = made()
    answer = admin.client.post(path, fields | {"verification": signed})
    assert (answer.status_code, made()) == (302, before)
    assert answer["Location"].startswith("/admin/login/")


def test_DJ_16_every_form_of_the_control_room_is_tried_here() -> None:
    # A button has its name after the page's address; a form has none.
    acts = [each.split() for each in writing() if each.startswith("POST admin/")]
    assert {f"/{act[1]}" for act in acts if not act[2:]} == set(ACTS)


@pytest.mark.usefixtures("another_admin")
@pytest.mark.parametrize("loss", ["no longer staff", "suspended"])
def test_AP_9_DJ_16_former_admin_cannot_use_admin_actions(
    admin: Person, reading: Grant, now: datetime, loss: str
) -> None:
    if loss == "suspended":
        lose(admin, loss, now)
    else:
        Human.objects.filter(pk=admin.human.pk).update(is_staff=False)
    for model, action in (("grant", "deny"), ("agent", "revoke"), ("human", "suspend")):
        row: Any = {"grant": reading, "agent": reading.agent, "human": reading.agent.human}[model]
        answer = admin.client.post(
            f"/admin/registry/{model}/", {"action": action, "_selected_action": [str(row.pk)]}
        )
        assert answer.status_code == 302
        row.refresh_from_db()
        assert row.status in {"pending", "active"}
