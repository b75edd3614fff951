"""A service provider moves, changes what it allows, gets a new secret: the commands, its grants."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError

from agentauth.protocol.errors import InvalidClientError, InvalidRequestError, InvalidStateError
from audit.models import Event
from audit.tests.command_output import json_of
from registry.models import Grant, Human, ServiceLogo, ServiceProvider, Token
from registry.services.grants import suspend_grant
from registry.services.provider_authentication import authenticate_service_provider
from registry.services.service_providers import (
    change_allowed,
    change_audience,
    create_service_provider,
    end_previous_secrets,
    revoke_service_provider,
    rotate_secret,
)
from registry.services.token_state import token_state
from registry.tests.cast import (
    PAY,
    READ_CALENDAR,
    TESTER,
    AgentClient,
    approve,
    approved,
    issue,
    pending,
)
from registry.tests.logos import picture

pytestmark = pytest.mark.django_db
MOVED = "http://127.0.0.1:8009/api"


def test_a_move_suspends_every_grant_there_and_no_other(
    agent: AgentClient, service_provider: ServiceProvider, token_key: None, now: datetime
) -> None:
    other, _ = create_service_provider(
        name="Other",
        audience="https://other.example",
        allowed=["read:calendar"],
        actor=TESTER,
        now=now,
    )
    here, there = approved(agent, service_provider, now=now), approved(agent, other, now=now)
    issue(agent, here)
    answer = json_of("change_service_provider", service_provider.slug, "--audience", MOVED)
    assert answer == {
        "client_id": str(service_provider.pk),
        "slug": service_provider.slug,
        "audience": MOVED,
        "allowed": service_provider.allowed,
        "grants_suspended": 1,
    }
    for grant in (here, there):
        grant.refresh_from_db()
    assert (here.status, here.suspension_cause, here.version) == (
        "suspended",
        "audience_changed",
        2,
    )
    assert (there.status, there.version) == ("approved", 1)
    assert token_state(Token.objects.get().jti).refusal(now) == "grant_inactive"
    event = Event.objects.get(kind="registry.service_provider.audience_changed")
    assert event.data == {
        "before": service_provider.audience,
        "audience": MOVED,
        "grants_suspended": 1,
    }


def test_a_request_that_waits_is_not_withdrawn_by_a_move(
    agent: AgentClient, service_provider: ServiceProvider, alice: Human, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    change_audience(service_provider=service_provider, audience=MOVED, actor=TESTER, now=now)
    fresh = Grant.objects.select_related("agent__human", "service_provider").get(pk=grant.pk)
    assert fresh.status == "pending"
    assert approve(fresh, alice, now=now).status == "approved"


@pytest.mark.parametrize(
    "audience",
    [
        "nonsense",
        "https://taken.example",
        "https://taken.example/v1/deep",
        "http://localhost:8000/x",
        MOVED + "/",
    ],
)
def test_a_bad_or_overlapping_place_is_refused(
    service_provider: ServiceProvider, now: datetime, audience: str
) -> None:
    create_service_provider(
        name="Taken", audience="https://taken.example/v1", actor=TESTER, now=now
    )
    with pytest.raises(CommandError):
        json_of("change_service_provider", service_provider.slug, "--audience", audience)
    before = service_provider.audience
    service_provider.refresh_from_db()
    assert service_provider.audience == before
    assert not Event.objects.filter(kind="registry.service_provider.audience_changed").exists()


def test_a_move_within_its_own_place_and_to_where_it_is(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    same = change_audience(
        service_provider=service_provider, audience=service_provider.audience, actor=TESTER, now=now
    )
    grant.refresh_from_db()
    assert (same, grant.status) == (0, "approved")
    deeper = service_provider.audience + "/deeper"
    assert (
        change_audience(service_provider=service_provider, audience=deeper, actor=TESTER, now=now)
        == 1
    )


def test_only_grants_beyond_the_new_allow_list_are_suspended(
    agent: AgentClient, service_provider: ServiceProvider, token_key: None, now: datetime
) -> None:
    reading = approved(agent, service_provider, now=now)
    paying = approved(agent, service_provider, now=now, capabilities=[READ_CALENDAR, PAY])
    issue(agent, reading)
    answer = json_of(
        "change_service_provider", str(service_provider.pk), "--allow", "read:calendar"
    )
    assert (answer["allowed"], answer["grants_suspended"]) == (["read:calendar"], 1)
    for grant in (reading, paying):
        grant.refresh_from_db()
    assert (paying.status, paying.suspension_cause, paying.version) == (
        "suspended",
        "allowed_changed",
        2,
    )
    assert (reading.status, reading.version) == ("approved", 1)
    assert token_state(Token.objects.get().jti).refusal(now) is None
    event = Event.objects.get(kind="registry.service_provider.allowed_changed")
    assert event.data == {
        "before": service_provider.allowed,
        "allowed": ["read:calendar"],
        "grants_suspended": 1,
    }
    assert (
        json_of("change_service_provider", service_provider.slug, "--allow")["grants_suspended"]
        == 1
    )
    reading.refresh_from_db()
    assert reading.suspension_cause == "allowed_changed"


def test_what_a_person_had_suspended_does_not_come_back_past_either_change(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    moved = approved(agent, service_provider, now=now)
    beyond = approved(agent, service_provider, now=now)
    for grant in (moved, beyond):
        suspend_grant(grant=grant, actor=TESTER, now=now)
    assert change_allowed(service_provider=service_provider, allowed=[], actor=TESTER, now=now) == 2
    assert (
        change_audience(service_provider=service_provider, audience=MOVED, actor=TESTER, now=now)
        == 0
    )
    moved.refresh_from_db()
    assert (moved.suspension_cause, moved.version) == ("allowed_changed", 4)


def test_a_bad_entry_or_nothing_to_change_is_refused(
    service_provider: ServiceProvider, now: datetime
) -> None:
    before = service_provider.allowed
    for arguments in (["--allow", "read"], ["--allow", "read:*"], []):
        with pytest.raises(CommandError):
            json_of("change_service_provider", service_provider.slug, *arguments)
    with pytest.raises(CommandError):
        json_of("change_service_provider", "nobody", "--allow")
    with pytest.raises(InvalidRequestError):
        change_allowed(
            service_provider=service_provider, allowed=["read:a"] * 65, actor=TESTER, now=now
        )
    assert (
        change_allowed(service_provider=service_provider, allowed=before, actor=TESTER, now=now)
        == 0
    )
    assert not Event.objects.filter(kind="registry.service_provider.allowed_changed").exists()
    service_provider.refresh_from_db()
    assert service_provider.allowed == before


def test_an_operator_uploads_a_logo_which_waits(
    service_provider: ServiceProvider, tmp_path: Path
) -> None:
    path, slug = tmp_path / "logo.webp", service_provider.slug
    for content in (None, b"<svg/>"):
        with pytest.raises(CommandError, match=r"logo\.webp|PNG, JPEG or WebP"):
            json_of("change_service_provider", slug, "--audience", MOVED, "--logo", str(path))
        if content is None:
            path.write_bytes(b"<svg/>")
    path.write_bytes(picture(form="WEBP"))
    assert json_of("change_service_provider", slug, "--logo", str(path))["grants_suspended"] == 0
    row = ServiceLogo.objects.get()
    assert (row.service_provider_id, row.approved_at) == (service_provider.pk, None)
    service_provider.refresh_from_db()
    assert service_provider.audience != MOVED


def test_both_changes_or_none(service_provider: ServiceProvider) -> None:
    before = service_provider.audience
    with pytest.raises(CommandError):
        json_of(
            "change_service_provider", service_provider.slug, "--audience", MOVED, "--allow", "read"
        )
    service_provider.refresh_from_db()
    assert service_provider.audience == before


def test_a_secret_is_replaced_without_a_pause(
    provider_and_secret: tuple[ServiceProvider, str], now: datetime
) -> None:
    provider, first = provider_and_secret

    def good(secret: str) -> bool:
        try:
            authenticate_service_provider(client_id=str(provider.pk), secret=secret)
        except InvalidClientError:
            return False
        return True

    answer = json_of("rotate_service_provider_secret", provider.slug)
    assert answer.keys() == {"client_id", "slug", "client_secret"}
    second = answer["client_secret"]
    assert (good(first), good(second)) == (True, True)
    ended = json_of("rotate_service_provider_secret", provider.slug, "--end-previous")
    assert ended == {"client_id": str(provider.pk), "slug": provider.slug, "secrets_ended": 1}
    assert (good(first), good(second)) == (False, True)
    third = rotate_secret(service_provider=provider, actor=TESTER, now=now + timedelta(seconds=1))
    fourth = rotate_secret(service_provider=provider, actor=TESTER, now=now + timedelta(seconds=2))
    assert [good(secret) for secret in (second, third, fourth)] == [False, True, True]
    kinds = Event.objects.filter(kind__startswith="registry.service_provider.secret")
    assert [event.kind.rpartition(".")[2] for event in kinds.order_by("id")] == [
        "secret_rotated", "secrets_ended", "secret_rotated", "secret_rotated",
    ]  # fmt: skip
    assert not any(
        secret in str(list(Event.objects.values())) for secret in (first, second, third, fourth)
    )
    # Ending nothing records no event.
    assert end_previous_secrets(service_provider=provider, actor=TESTER, now=now) == 1
    assert end_previous_secrets(service_provider=provider, actor=TESTER, now=now) == 0
    assert kinds.filter(kind__endswith="secrets_ended").count() == 2


def test_a_revoked_service_provider_is_not_changed(
    service_provider: ServiceProvider, now: datetime
) -> None:
    revoke_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        change_audience(service_provider=service_provider, audience=MOVED, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        change_allowed(service_provider=service_provider, allowed=[], actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        rotate_secret(service_provider=service_provider, actor=TESTER, now=now)
