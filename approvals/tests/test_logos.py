"""A service's logo: an administrator signs for it, people see it, no other picture is served."""

from datetime import datetime
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agentauth.protocol.approval_receipt import verify_receipt
from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import InvalidStateError
from approvals.models import Receipt
from approvals.services import logo_approval_signing
from approvals.tests.cast import Person, browser
from approvals.tests.test_swaps import after
from audit import kinds
from audit.models import Event
from kms.services import verification_keys
from registry.models import Grant, ServiceLogo, ServiceProvider
from registry.services.service_logos import approve_logo, shown_image
from registry.services.service_providers import create_service_provider, revoke_service_provider
from registry.tests.cast import TESTER, AgentClient, approved, assert_refused
from registry.tests.describing import proposed
from registry.tests.logos import logo, picture, shown

pytestmark = pytest.mark.django_db
BINARY = "application/octet-stream"
RED = (200, 20, 20)


def upload(person: Person, provider: ServiceProvider, data: bytes, media: str = BINARY) -> Any:
    return person.client.post(f"/logos/{provider.pk}/upload", data, content_type=media)


def approve(admin: Person, provider: ServiceProvider) -> Any:
    path = f"/logos/{provider.pk}/"
    asked = admin.press_on(path)
    assert asked.status_code == 200, asked.content
    credential = admin.device.assertion(asked.json()["publicKey"])
    return admin.post(f"{path}decide", {"credential": credential})


def test_admin_uploads_a_logo_and_signs_for_its_digest(
    admin: Person, alice: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    assert upload(admin, service_provider, picture()).status_code == 200
    row = ServiceLogo.objects.get()
    assert sha256(bytes(row.image)).hex() == row.sha256
    assert alice.get(f"/logos/{row.sha256}.png").status_code == 404
    assert approve(admin, service_provider).json()["status"] == "Approved"
    row.refresh_from_db()
    assert (row.approved_at is not None, row.is_sealed()) == (True, True)
    assert Event.objects.get(kind=kinds.LOGO_APPROVED).data == {"sha256": row.sha256}
    compact = admin.get(f"/logos/{service_provider.pk}/receipt").content.decode()
    keys = verification_keys(purpose="receipt", now=now)
    verified = verify_receipt(compact, keys=keys, expected_issuer=settings.ISSUER)
    assert verified.statement.body["logo_sha256"] == row.sha256
    assert f"SHA-256 of the picture: {row.sha256}" in verified.consent_text.splitlines()


def test_the_control_room_leads_to_a_logo_that_waits(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    link = f'href="/logos/{service_provider.pk}/"'
    assert link not in admin.get("/admin/").content.decode()
    logo(service_provider, now)
    assert link in admin.get("/admin/").content.decode()
    row = f"/admin/registry/serviceprovider/{service_provider.pk}/change/"
    assert link in admin.get(row).content.decode()


def test_a_logo_is_served_from_its_digest_for_ever(
    alice: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    row = shown(service_provider, now)
    answer = alice.get(f"/logos/{row.sha256}.png")
    assert (answer.status_code, answer.content) == (200, bytes(row.image))
    wanted = {
        "Content-Type": "image/png",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    assert {name: answer[name] for name in wanted} == wanted
    assert "img-src 'self'" in answer["Content-Security-Policy"]


def test_no_other_address_has_a_picture(
    alice: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    digest = shown(service_provider, now).sha256
    waiting = logo(service_provider, now, RED).sha256
    for wrong in ("0" * 64, digest.upper(), digest[:-1], waiting, f"{digest}0", "x"):
        assert alice.get(f"/logos/{wrong}.png").status_code == 404, wrong
    answer = browser().get(f"/logos/{digest}.png")
    assert (answer.status_code, answer["Location"].split("?")[0]) == (302, "/sign-in/")


def test_a_picture_or_row_that_no_service_wrote_is_not_served(
    alice: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    row = shown(service_provider, now)
    ServiceLogo.objects.filter(pk=row.pk).update(image=b"other")
    assert alice.get(f"/logos/{row.sha256}.png").status_code == 404
    other = sha256(b"other").hex()
    ServiceLogo.objects.filter(pk=row.pk).update(sha256=other)
    assert alice.get(f"/logos/{other}.png").status_code == 404
    row.delete()
    waiting = logo(service_provider, now)
    ServiceLogo.objects.update(approved_at=now)
    assert alice.get(f"/logos/{waiting.sha256}.png").status_code == 404


def test_a_refused_picture_keeps_the_one_that_waits(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    row = logo(service_provider, now)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    told = assert_refused(upload(admin, service_provider, svg), 400, "invalid_request")
    assert "PNG, JPEG or WebP" in told["error_description"]
    large = upload(admin, service_provider, b"x" * (256 * 1024 + 1))
    assert "256 kB" in assert_refused(large, 400, "invalid_request")["error_description"]
    for media in ("image/png", "multipart/form-data; boundary=x", "text/plain"):
        assert_refused(upload(admin, service_provider, picture(), media), 400, "invalid_request")
    assert [each.pk for each in ServiceLogo.objects.all()] == [row.pk]


def test_only_administrators_see_and_change_logos(
    admin: Person, alice: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    row = logo(service_provider, now)
    path = f"/logos/{service_provider.pk}/"
    for place in ("", "receipt"):
        assert alice.get(path + place).status_code == 404
    for place in ("upload", "statement", "decide", "remove"):
        assert_refused(alice.post(path + place), 404, "not_found")
        assert_refused(Person().post(path + place), 401, "sign_in_required")
    assert_refused(upload(alice, service_provider, picture()), 404, "not_found")
    assert admin.get(path).status_code == 200
    assert ServiceLogo.objects.get().pk == row.pk


def test_a_logo_uploaded_meanwhile_is_not_approved(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    logo(service_provider, now)
    path = f"/logos/{service_provider.pk}/"
    options = admin.press_on(path).json()["publicKey"]
    logo(service_provider, now, RED)
    signed = {"credential": admin.device.assertion(options)}
    told = assert_refused(admin.post(f"{path}decide", signed), 409, "grant_changed")
    assert "Another logo was uploaded." in told["changes"]
    assert not ServiceLogo.objects.exclude(approved_at=None).exists()
    assert not Receipt.objects.filter(kind="logo").exists()


def test_a_logo_uploaded_while_the_signature_is_checked_is_not_approved(
    admin: Person,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the page was compared: the signature is for the one before."""
    logo(service_provider, now)
    path = f"/logos/{service_provider.pk}/"
    signed = {"credential": admin.device.assertion(admin.press_on(path).json()["publicKey"])}
    after(
        monkeypatch, logo_approval_signing, "waiting_page", lambda: logo(service_provider, now, RED)
    )
    assert_refused(admin.post(f"{path}decide", signed), 409, "invalid_state")
    assert not ServiceLogo.objects.exclude(approved_at=None).exists()


def test_DJ_17_bytes_that_are_not_the_encoders_are_not_signed_for(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    """As someone who can write rows stores an animation whose first frame is the right logo."""
    row, other = logo(service_provider, now), b"\x89PNG another picture"
    path = f"/logos/{service_provider.pk}/"
    options = admin.press_on(path).json()["publicKey"]
    digest = sha256(other).hex()
    ServiceLogo.objects.filter(pk=row.pk).update(image=other, sha256=digest)
    signed = {"credential": admin.device.assertion(options)}
    assert admin.post(f"{path}decide", signed).status_code == 409
    assert "Approve with passkey" not in admin.get(path).content.decode()
    with pytest.raises(InvalidStateError):
        logo_approval_signing.waiting_page(service_provider)
    with pytest.raises(InvalidStateError):
        approve_logo(row=ServiceLogo.objects.get(), actor=TESTER, now=now)
    assert shown_image(digest) is None


def test_a_new_logo_replaces_the_old_one_which_is_gone(
    admin: Person, alice: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    before = shown(service_provider, now)
    after = logo(service_provider, now, RED)
    page = admin.get(f"/logos/{service_provider.pk}/")
    assert f"It replaces the logo with the SHA-256 {before.sha256}." in page.content.decode()
    assert approve(admin, service_provider).status_code == 200
    assert [each.sha256 for each in ServiceLogo.objects.all()] == [after.sha256]
    assert alice.get(f"/logos/{before.sha256}.png").status_code == 404


def test_a_copy_of_another_services_logo_is_named_before_it_is_signed(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    path, said = f"/logos/{service_provider.pk}/", "exactly the logo of service “Harbour Files” at"
    other, _ = create_service_provider(
        name="Harbour Files", audience="http://127.0.0.1:8002", allowed=[], actor=TESTER, now=now
    )
    logo(service_provider, now)
    copied = logo(other, now)
    # A logo that only waits is seen by administrators alone.
    assert said not in admin.get(path).content.decode()
    options = admin.press_on(path).json()["publicKey"]
    approve_logo(row=copied, actor=TESTER, now=now)
    signed = {"credential": admin.device.assertion(options)}
    told = assert_refused(admin.post(f"{path}decide", signed), 409, "grant_changed")
    assert told["changes"] == ["The warnings have changed."]
    page = admin.get(path).content.decode()
    assert f"{said} http://127.0.0.1:8002." in page
    assert approve(admin, service_provider).status_code == 200
    logo(service_provider, now)
    assert page.count(said) == admin.get(path).content.decode().count(said) == 1
    logo(service_provider, now, RED)
    assert said not in admin.get(path).content.decode()


def test_a_session_refuses_a_logo_and_removes_the_approved_one(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    path = f"/logos/{service_provider.pk}/remove"
    kept, waiting = shown(service_provider, now), logo(service_provider, now, RED)
    assert admin.client.post(path, {"logo": waiting.sha256}).status_code == 302
    assert [each.pk for each in ServiceLogo.objects.all()] == [kept.pk]
    assert admin.client.post(path, {"logo": kept.sha256}).status_code == 302
    assert_refused(admin.client.post(path, {"logo": kept.sha256}), 409, "invalid_state")


def test_a_revoked_service_gets_no_logo(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    logo(service_provider, now)
    drawn = admin.drawn_at(f"/logos/{service_provider.pk}/")
    asked = admin.post(f"/logos/{service_provider.pk}/statement", {"drawn": drawn}).json()
    revoke_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    assert_refused(upload(admin, service_provider, picture()), 409, "invalid_state")
    signed = {"credential": admin.device.assertion(asked["publicKey"])}
    done = admin.post(f"/logos/{service_provider.pk}/decide", signed)
    assert_refused(done, 409, "invalid_state")


def test_the_logo_stands_where_the_mark_stood_marked_as_the_services(
    alice: Person,
    admin: Person,
    agent: AgentClient,
    reading: Grant,
    paying: Grant,
    service_provider: ServiceProvider,
    now: datetime,
) -> None:
    alice.approve(reading)
    decided = Event.objects.get(kind=kinds.GRANT_APPROVED)
    pages = [
        (alice, "/approvals/"),
        (alice, f"/approvals/{paying.pk}/"),
        (alice, f"/approvals/{reading.pk}/receipt/"),
        (alice, f"/agents/{reading.agent_id}/"),
        (alice, f"/activity/{decided.pk}/"),
        (admin, f"/catalogues/{proposed(service_provider, now).pk}/"),
    ]
    for person, path in pages:
        assert "/logos/" not in person.get(path).content.decode(), path
    digest = shown(service_provider, now).sha256
    for person, path in pages:
        page = person.get(path).content.decode()
        assert page.count(f'src="/logos/{digest}.png"') == 1, path
        assert "Logo: the service’s own" in page, path


def test_logos_take_one_query_however_many_services(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    shown(service_provider, now)
    for number in (2, 3):
        provider, _ = create_service_provider(
            name=f"Service {number}",
            audience=f"http://127.0.0.1:800{number}",
            allowed=["read:calendar"],
            actor=TESTER,
            now=now,
        )
        approved(agent, provider, now=now)
        shown(provider, now, (number, number, number))
    with CaptureQueriesContext(connection) as found:
        page = alice.get(f"/agents/{grant.agent_id}/").content.decode()
    assert page.count('class="identity logo"') == 3
    assert sum("registry_servicelogo" in each["sql"] for each in found) == 1
    assert not any('"image"' in each["sql"] for each in found)
