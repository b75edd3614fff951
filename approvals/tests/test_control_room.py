"""The admin site: every button calls a service with an event, and refusals are recorded too."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from django.db.models import Model
from django.utils import timezone
from pytest_django import Settings

from agentauth.protocol.keys import PrivateKey
from approvals.admin_site import site
from approvals.models import Notification, NotificationChannel, SetupCode
from approvals.notifications.outbox import tell_channels
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.tests.cast import Person, browser
from approvals.tests.notifying import by_mail
from audit import kinds
from audit.log.refusal_counts import Batches
from audit.models import Checkpoint, CheckpointCopy, Cosignature, Event, Segment
from kms.models import Key, KeyCertificate
from kms.process_key_certificates import certify
from kms.services import ensure_key, promote_due_keys, rotate_key
from registry import caller_limits
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.agents import suspend_agent
from registry.tests.cast import TESTER, AgentClient, enrolled, pending
from registry.tests.describing import proposed

pytestmark = pytest.mark.django_db
RESUMED: dict[type[Model], str] = {
    Grant: "grant",
    Agent: "agent",
    ServiceProvider: "service_provider",
    Human: "human",
}

ENDED: dict[type[Model], str] = RESUMED | {
    Key: "key",
    KeyCertificate: "key_certificate",
    SetupCode: "invitation",
}


def press(admin: Person, row: Model, action: str) -> Any:
    path = f"/admin/{row._meta.app_label}/{row._meta.model_name}/"
    done = admin.client.post(
        path, {"action": action, "_selected_action": [str(row.pk)]}, follow=True
    )
    assert done.status_code == 200
    return done.content.decode()


def events(actor: Person, seen: set[Any]) -> list[tuple[str, str]]:
    """Kind and outcome of this user's events since `seen`."""
    fresh = Event.objects.exclude(pk__in=seen).filter(
        actor_kind="human", actor_id=str(actor.human.pk)
    )
    return [(event.kind, event.outcome) for event in fresh.order_by("id")]


def replaced() -> Key:
    """A token key that has a successor."""
    now = timezone.now()
    key = ensure_key(purpose="token", actor=TESTER, now=now)
    rotate_key(purpose="token", actor=TESTER, now=now)
    Key.objects.filter(state=Key.State.NEXT, purpose="token").update(active_from=now)
    promote_due_keys(now=now)
    return key


def certificate() -> KeyCertificate:
    """A certificate for some process's key."""
    now = timezone.now()
    ensure_key(purpose="token", actor=TESTER, now=now)
    return certify(PrivateKey.generate("EdDSA").public, process=1, now=now)


def invitation() -> SetupCode:
    """An unused invitation."""
    create_setup_link(email="zoe@example.org", actor=TESTER, now=timezone.now())
    return SetupCode.objects.get(email="zoe@example.org")


def dead_message(person: Person) -> Notification:
    """A message to this person that failed too often."""
    now = timezone.now()
    by_mail(person.human, now)
    channel = NotificationChannel.objects.get(human=person.human)
    tell_channels([channel], what=Notification.What.PASSKEY_ADDED, now=now)
    Notification.objects.update(state="dead", ended_at=now)
    return Notification.objects.get()


def test_DJ_16_each_button_changes_the_row_and_writes_its_event(
    admin: Person,
    alice: Person,
    agent: AgentClient,
    reading: Grant,
    service_provider: ServiceProvider,
) -> None:
    # In an order in which each act is possible.
    waiting = pending(
        agent,
        service_provider,
        now=timezone.now(),
        capabilities=[{"type": "write", "resource": "files"}],
    )
    alice.approve(reading)
    presses: Sequence[tuple[Model, str, str, str | None]] = [
        (dead_message(alice), "send_again", "approvals.notification.retried", "pending"),
        (waiting, "deny", "registry.grant.denied", "denied"),
        (reading, "suspend", "registry.grant.suspended", "suspended"),
        (reading, "resume", "registry.grant.resumed", "approved"),
        (reading, "revoke", "registry.grant.revoked", "revoked"),
        (agent.agent(), "suspend", "registry.agent.suspended", "suspended"),
        (agent.agent(), "resume", "registry.agent.resumed", "active"),
        (agent.agent(), "revoke", "registry.agent.revoked", "revoked"),
        (service_provider, "suspend", "registry.service_provider.suspended", "suspended"),
        (service_provider, "resume", "registry.service_provider.resumed", "active"),
        (service_provider, "revoke", "registry.service_provider.revoked", "revoked"),
        (alice.human, "suspend", "registry.human.suspended", "suspended"),
        (alice.human, "resume", "registry.human.resumed", "active"),
        (alice.human, "end_sessions", "registry.human.sessions_ended", "active"),
        (Key.objects.get(purpose="receipt"), "rotate", "kms.key.published", "active"),
        (replaced(), "disable", "kms.key.disabled", "disabled"),
        (certificate(), "revoke", kinds.KEY_CERTIFICATE_REVOKED, "revoked"),
        (alice.human, "delete", "registry.human.deleted", "deleted"),
        (invitation(), "forget", kinds.INVITATION_ERASED, None),
    ]
    # All buttons: a new one without a row here, and so without an event, fails the test.
    request = _request(admin)
    assert {(type(row), action) for row, action, _kind, _status in presses} == {
        (model, action)
        for model, model_admin in site._registry.items()
        for action in model_admin.get_actions(request)
    }
    for row, action, kind, status in presses:
        seen = set(Event.objects.values_list("pk", flat=True))
        press(admin, row, action)
        # These two only lead to the page where each row is signed for.
        if action == "deny":
            admin.deny_as_admin(waiting)
        elif action == "resume":
            admin.resume(f"/resume/{RESUMED[type(row)]}/{row.pk}/")
        elif action in {"revoke", "disable", "delete", "forget"}:
            # These lead to the page that asks for confirmation.
            assert events(admin, seen) == []
            assert admin.end(f"/endings/{ENDED[type(row)]}/?id={row.pk}").status_code == 302
        beside = {kinds.HUMAN_VERIFIED, kinds.HUMAN_ERASED}
        done = [each for each in events(admin, seen) if each[0] not in beside]
        assert done[-1:] == [(kind, "success")]
        assert action == "delete" or len(done) == 1
        column = (
            "state"
            if isinstance(row, Key | KeyCertificate | Notification)
            else "status"
            if status
            else "kind"
        )
        left = type(row)._default_manager.filter(pk=row.pk).values_list(column, flat=True)
        assert list(left) == ([status] if status else [])


@pytest.mark.parametrize("model", ["agent", "grant", "serviceprovider", "human"])
def test_a_button_for_a_row_that_cannot_be_is_a_bad_request(admin: Person, model: str) -> None:
    body = {"action": "suspend", "_selected_action": ["no-id"]}
    answer = admin.client.post(f"/admin/registry/{model}/", body)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


def test_a_refused_button_says_why_and_is_on_record(admin: Person, reading: Grant) -> None:
    seen = set(Event.objects.values_list("pk", flat=True))
    assert "Only an approved grant can be suspended." in press(admin, reading, "suspend")
    assert events(admin, seen) == [("audit.request.refused", "denied")]


def test_a_refused_form_says_why_and_is_on_record(
    admin: Person, service_provider: ServiceProvider
) -> None:
    seen = set(Event.objects.values_list("pk", flat=True))
    body = {"name": "Another", "audience": service_provider.audience, "allowed": ""}
    page = admin.press("/admin/new-service-provider/", body).content.decode()
    assert "not shown again" not in page
    signed = ("approvals.human.verified", "success")
    assert events(admin, seen) == [signed, ("audit.request.refused", "denied")]


def test_DJ_16_each_form_is_an_event_of_the_admin(admin: Person, bob: Person) -> None:
    """Each requires a signature; secrets it creates are shown and in no event."""
    forms: list[tuple[str, dict[str, str], str]] = [
        ("invite", {"email": "new@example.org"}, "approvals.setup_code.created"),
        ("enrolment-code", {"human": str(bob.human.pk)}, "registry.enrolment_code.created"),
        (
            "new-service-provider",
            {"name": "Beta", "audience": "http://127.0.0.1:8004"},
            "registry.service_provider.created",
        ),
    ]
    for name, fields, kind in forms:
        seen = set(Event.objects.values_list("pk", flat=True))
        assert admin.press(f"/admin/{name}/", fields).status_code in {200, 302}
        done = events(admin, seen)
        assert done[0] == ("approvals.human.verified", "success"), name
        assert (kind, "success") in done, name


def test_DJ_16_no_row_can_be_added_changed_or_deleted_by_hand(
    admin: Person, reading: Grant
) -> None:
    at = timezone.now()
    create_setup_link(email="new@example.org", actor=TESTER, now=at)
    signed = Checkpoint.objects.create(size=3, root=bytes(32), note="x", at=at)
    CheckpointCopy.objects.create(checkpoint=signed, store="file:/copies", at=at)
    Cosignature.objects.create(checkpoint=signed, witness="witness.example", line="x", at=at)
    Segment.objects.create(first=0, end=2, manifest_sha256=bytes(32), at=at)
    certificate()
    dead_message(admin)
    proposed(ServiceProvider.objects.get(), at)
    for model, model_admin in site._registry.items():
        base = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        row = model._default_manager.first()
        assert row is not None, model
        before = model._default_manager.values().get(pk=row.pk)
        assert admin.get(base).status_code == 200
        assert admin.get(f"{base}{row.pk}/change/").status_code == 200
        assert admin.get(f"{base}add/").status_code == 403
        assert admin.client.post(f"{base}add/", {"name": "x"}).status_code == 403
        for fields in ({"name": "x", "kind": "x", "status": "approved"}, {}):
            assert admin.client.post(f"{base}{row.pk}/change/", fields).status_code == 403
        assert admin.client.post(f"{base}{row.pk}/delete/", {"post": "yes"}).status_code == 403
        assert "delete_selected" not in model_admin.get_actions(_request(admin))
        assert model._default_manager.values().get(pk=row.pk) == before
    assert {Event, Grant, Agent, Human, ServiceProvider} < set(site._registry)


def test_DJ_16_no_name_and_password_open_the_control_room(alice: Person) -> None:
    """Users have no passwords, and the login page leads to the passkey sign-in."""
    visitor = browser()
    for path in ("/admin/login/", "/admin/", "/sign-in/"):
        answer = visitor.post(
            path, {"username": "alice@example.org", "password": "x", "next": "/admin/"}
        )
        assert answer.status_code in {302, 405}
        assert "_auth_user_id" not in visitor.session
    assert (
        visitor.get("/admin/", follow=True)
        .redirect_chain[-1][0]
        .startswith("/sign-in/?next=%2Fadmin%2F")
    )


def test_DJ_16_guessing_at_the_door_is_slowed_down(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, admin: Person
) -> None:
    """The real limits in one process: 60 tries at once an address; a signed-in admin goes on."""
    settings.RATE_LIMITED, settings.WEB_CONCURRENCY = True, 1
    # However slow this machine is, no time passes.
    monkeypatch.setattr("registry.caller_limits.time", SimpleNamespace(monotonic=lambda: 1_000.0))
    monkeypatch.setattr("agentauth.http_errors._batches", Batches(seconds=60))
    caller_limits.limiter.cache_clear()
    stranger = browser()
    body = json.dumps({"credential": {"id": "AA"}})
    tries = [
        stranger.post("/sign-in/finish", body, content_type="application/json").status_code
        for _ in range(70)
    ]
    assert tries == [400] * 60 + [429] * 10
    slowed = stranger.post("/sign-in/finish", body, content_type="application/json")
    assert int(slowed["Retry-After"]) >= 1
    assert admin.get("/admin/").status_code == 200
    caller_limits.limiter.cache_clear()


def _request(admin: Person) -> Any:
    return admin.get("/admin/").wsgi_request


def test_lists_are_named_in_plain_english(admin: Person) -> None:
    assert "Checkpoint copies" in admin.get("/admin/").content.decode()
    page = admin.get("/admin/audit/checkpointcopy/").content.decode()
    assert "<h1>Checkpoint copies</h1>" in page
    assert "0 checkpoint copies" in page


def test_more_rows_than_a_url_holds_are_announced_and_the_rest_follows(
    admin: Person, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.admin.MOST_AT_ONCE", 2)
    now, path = timezone.now(), "/admin/registry/agent/"
    rows = [enrolled(alice.human, now=now).agent() for _ in range(3)]
    chosen = [str(row.pk) for row in rows]

    def go(action: str) -> Any:
        return admin.client.post(path, {"action": action, "_selected_action": chosen})["Location"]

    asked = go("revoke")
    assert asked == f"/endings/agent/?id={chosen[0]}&id={chosen[1]}&of=3"
    page = " ".join(admin.get(asked).content.decode().split())
    assert "These are the first 2 of 3 that you chose." in page
    assert admin.end(asked).status_code == 302
    # The same rows selected again: the rest of them.
    assert go("revoke") == f"/endings/agent/?id={chosen[2]}"
    assert "the first" not in admin.get(go("revoke")).content.decode()
    rows = [enrolled(alice.human, now=now).agent() for _ in range(3)]
    chosen = [str(row.pk) for row in rows]
    for row in rows[1:]:
        suspend_agent(agent=row, actor=TESTER, now=now, by_admin=True)
    asked = go("resume")
    assert asked == f"/resume/agent/?id={chosen[1]}&id={chosen[2]}"
    suspend_agent(agent=rows[0], actor=TESTER, now=now, by_admin=True)
    assert "These are the first 2 of 3 that you chose." in " ".join(
        admin.get(go("resume")).content.decode().split()
    )
