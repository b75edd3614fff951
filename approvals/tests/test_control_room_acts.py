"""What an administrator makes in the control room: each takes a passkey signature of its own."""

import json
from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from agentauth.protocol.errors import InvalidStateError
from approvals.admin_details import row_page
from approvals.models import SetupCode
from approvals.services.recovery import confirm_recovery, start_recovery
from approvals.tests.cast import ORIGIN, Person, registered
from audit.models import Event
from audit.services import SYSTEM
from registry.models import Grant, Human, ServiceProvider, ServiceProviderSecret
from registry.roles import Role
from registry.services.service_providers import rotate_secret
from registry.tests.cast import TESTER, assert_refused, basic

pytestmark = pytest.mark.django_db


def provider_page(provider: ServiceProvider, name: str) -> str:
    return f"/admin/service-providers/{provider.pk}/{name}/"


def changed(provider: ServiceProvider, **fields: str) -> dict[str, str]:
    shown = {"audience": provider.audience, "allowed": "\n".join(provider.allowed)}
    return shown | {f"shown_{name}": value for name, value in shown.items()} | fields


@pytest.mark.parametrize("page", ["change", "rotate-secret", "end-previous-secrets"])
def test_SA_1_a_session_alone_changes_no_service_provider(
    admin: Person, service_provider: ServiceProvider, page: str
) -> None:
    rotate_secret(service_provider=service_provider, actor=TESTER, now=timezone.now())
    before = (
        ServiceProvider.objects.values().get(),
        list(ServiceProviderSecret.objects.values()),
    )
    path = provider_page(service_provider, page)
    answer = admin.client.post(path, changed(service_provider, allowed="read:calendar"))
    assert_refused(answer, 401, "verification_required")
    elsewhere = json.dumps(admin.verification("/admin/invite/"))
    answer = admin.client.post(path, changed(service_provider) | {"verification": elsewhere})
    assert_refused(answer, 400, "invalid_assertion")
    assert before == (
        ServiceProvider.objects.values().get(),
        list(ServiceProviderSecret.objects.values()),
    )


def test_service_provider_is_changed_and_its_grants_wait(
    admin: Person, alice: Person, reading: Grant
) -> None:
    alice.approve(reading)
    provider = reading.service_provider
    path = provider_page(provider, "change")
    assert admin.get(path).context["form"].initial["allowed"] == "\n".join(provider.allowed)
    done = admin.press(path, changed(provider, audience="http://127.0.0.1:8002"))
    assert done["Location"] == row_page(provider)
    page = admin.get(row_page(provider)).content.decode()
    assert "Grants that wait for a new signature: 1." in page
    provider.refresh_from_db()
    assert provider.audience == "http://127.0.0.1:8002"
    assert provider.is_sealed()
    reading.refresh_from_db()
    assert reading.status == "suspended"


def test_refused_change_keeps_what_was_typed_and_changes_nothing(
    admin: Person, service_provider: ServiceProvider
) -> None:
    path = provider_page(service_provider, "change")
    body = changed(service_provider, audience="http://127.0.0.1:8002", allowed="read:a\nnonsense")
    page = admin.press(path, body)
    assert page.status_code == 200
    assert "nonsense" in page.content.decode()
    assert "http://127.0.0.1:8002" in page.content.decode()
    before = service_provider.audience
    service_provider.refresh_from_db()
    assert service_provider.audience == before


def test_change_made_meanwhile_is_not_undone(
    admin: Person, service_provider: ServiceProvider
) -> None:
    path, stale = provider_page(service_provider, "change"), changed(service_provider)
    admin.press(path, changed(service_provider, allowed="read:calendar"))
    page = admin.press(path, stale).content.decode()
    assert "Another administrator changed this service provider meanwhile." in page
    service_provider.refresh_from_db()
    assert service_provider.allowed == ["read:calendar"]


def test_rotated_secret_is_shown_once_and_the_old_one_works_until_ended(
    admin: Person, service_provider: ServiceProvider
) -> None:
    old = rotate_secret(service_provider=service_provider, actor=TESTER, now=timezone.now())
    page = admin.press(provider_page(service_provider, "rotate-secret"))
    [(_id, _pk), (_label, new)] = page.context["made"]
    assert new in page.content.decode()
    assert "no-store" in page["Cache-Control"]
    everything = json.dumps([event.data for event in Event.objects.all()])
    assert new not in everything
    assert new not in admin.get(row_page(service_provider)).content.decode()

    def works(secret: str) -> bool:
        answer = admin.client.post(
            "/v1/introspect",
            "token=x",
            content_type="application/x-www-form-urlencoded",
            headers=basic(service_provider, secret),
        )
        return bool(answer.status_code != 401)

    assert works(old)
    assert works(new)
    done = admin.press(provider_page(service_provider, "end-previous-secrets"))
    assert done["Location"] == row_page(service_provider)
    assert not works(old)
    assert works(new)
    buttons = admin.get(row_page(service_provider)).context["buttons"]
    assert not any("end-previous" in button.url for button in buttons)


def test_unknown_and_revoked_service_providers_are_refused(
    admin: Person, alice: Person, service_provider: ServiceProvider
) -> None:
    path = provider_page(service_provider, "rotate-secret")
    assert alice.get(path).status_code == 302
    ServiceProvider.objects.update(status="revoked", seal=None)
    page = admin.press(path)
    assert "This service provider was revoked permanently." in page.content.decode()
    unknown = path.replace(str(service_provider.pk), str(alice.human.pk))
    assert admin.get(unknown).status_code == 404


def test_SA_1_an_administrator_is_invited_with_a_passkey_alone(admin: Person) -> None:
    body = {"email": "two@example.org", "role": "owner"}
    assert_refused(admin.client.post("/admin/invite/", body), 401, "verification_required")
    assert not SetupCode.objects.filter(email="two@example.org").exists()
    page = admin.press("/admin/invite/", body)
    [(_label, link)] = page.context["made"]
    second = Person()
    second.set_up(link, name="Second", email="two@example.org")
    assert second.human.role is Role.OWNER
    assert second.get("/admin/").status_code == 200
    assert link.startswith(ORIGIN)


def test_invited_human_is_no_administrator_unless_asked_for(admin: Person) -> None:
    page = admin.press("/admin/invite/", {"email": "three@example.org"})
    [(_label, link)] = page.context["made"]
    third = Person()
    third.set_up(link, name="Third", email="three@example.org")
    assert third.human.role is None
    assert third.get("/admin/").status_code == 302


@pytest.mark.parametrize("part", ["begins", "decides"])
def test_administrator_invited_by_another_is_no_second_for_14_days(
    admin: Person, alice: Person, now: datetime, part: str
) -> None:
    page = admin.press("/admin/invite/", {"email": "two@example.org", "role": "owner"})
    second = Person()
    second.set_up(page.context["made"][0][1], name="Second", email="two@example.org")
    begins, decides = (
        (second.human, admin.human) if part == "begins" else (admin.human, second.human)
    )
    recovery = start_recovery(
        human=alice.human, case="lost", admin=begins, actor=SYSTEM, now=timezone.now()
    )

    def decide(at: datetime) -> None:
        confirm_recovery(recovery=recovery, admin=decides, actor=SYSTEM, now=at)

    with pytest.raises(InvalidStateError, match="was invited by another one"):
        decide(timezone.now())
    SetupCode.objects.filter(human=second.human).update(
        used_at=timezone.now() - timedelta(days=14, seconds=1)
    )
    decide(timezone.now())


def test_administrator_whom_an_operator_invited_is_a_second_at_once(
    admin: Person, alice: Person, now: datetime
) -> None:
    other = registered("other@example.org", "Other", now=now, is_staff=True)
    recovery = start_recovery(
        human=alice.human, case="lost", admin=admin.human, actor=SYSTEM, now=timezone.now()
    )
    confirm_recovery(recovery=recovery, admin=other.human, actor=SYSTEM, now=timezone.now())
    assert Human.objects.filter(is_staff=True).count() == 2
