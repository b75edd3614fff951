"""Users and service providers: created, suspended, resumed; secrets; audiences never overlap."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from agentauth.protocol.errors import InvalidClientError, InvalidRequestError, InvalidStateError
from audit.models import Event
from registry.models import Human, ServiceProvider, ServiceProviderSecret
from registry.roles import Role
from registry.services.humans import (
    change_time_zone,
    create_human,
    delete_human,
    end_sessions,
    resume_human,
    suspend_human,
)
from registry.services.provider_authentication import authenticate_service_provider
from registry.services.service_providers import (
    create_service_provider,
    end_secret,
    resume_service_provider,
    revoke_service_provider,
    rotate_secret,
    suspend_service_provider,
)
from registry.tests.cast import TESTER, AgentClient, assert_refused

pytestmark = pytest.mark.django_db
Provider = tuple[ServiceProvider, str]


def provider(audience: str, now: datetime, **changes: Any) -> Provider:
    return create_service_provider(
        name=changes.pop("name", "Name"), audience=audience, actor=TESTER, now=now, **changes
    )


def test_a_humans_name_and_address_are_commitments_in_the_log(alice: Human) -> None:
    event = Event.objects.get(kind="registry.human.created")
    assert "alice" not in str(event.data).lower()
    assert {opening.member for opening in event.openings.all()} == {"email", "name"}


@pytest.mark.parametrize(
    ("email", "name"),
    [
        ("ALICE@example.org", "B"),
        ("no address", "B"),
        ("b@example.org", ""),
        ("b@example.org", "a\u202eb"),
    ],
)
def test_a_bad_or_taken_human_is_refused(
    alice: Human, now: datetime, email: str, name: str
) -> None:
    with pytest.raises(InvalidRequestError):
        create_human(email=email, name=name, actor=TESTER, now=now)
    assert Human.objects.count() == 1


def test_suspending_a_human_ends_their_sessions(alice: Human, now: datetime) -> None:
    before = alice.get_session_auth_hash()
    suspend_human(human=alice, actor=TESTER, now=now)
    assert alice.status == "suspended"
    assert alice.get_session_auth_hash() != before
    with pytest.raises(InvalidStateError):
        suspend_human(human=alice, actor=TESTER, now=now)
    resume_human(human=alice, actor=TESTER, now=now)
    assert Human.objects.get().is_active
    assert alice.get_session_auth_hash() != before
    with pytest.raises(InvalidStateError):
        resume_human(human=alice, actor=TESTER, now=now)
    again = alice.get_session_auth_hash()
    end_sessions(human=alice, actor=TESTER, now=now)
    assert alice.get_session_auth_hash() != again


def test_a_human_is_read_again_after_each_change(alice: Human, now: datetime) -> None:
    change_time_zone(human=alice, zone="Europe/Berlin", actor=TESTER, now=now)
    assert alice.time_zone == "Europe/Berlin"
    delete_human(human=alice, actor=TESTER, now=now)
    assert alice.status == "deleted"


def test_the_last_admin_is_not_suspended(now: datetime) -> None:
    first, second = (
        create_human(email=f"{name}@example.org", name=name, role=Role.OWNER, actor=TESTER, now=now)
        for name in ("first", "second")
    )
    suspend_human(human=first, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError, match="last owner"):
        suspend_human(human=second, actor=TESTER, now=now)
    second.refresh_from_db()
    assert second.is_active
    resume_human(human=first, actor=TESTER, now=now)
    suspend_human(human=second, actor=TESTER, now=now)


def test_the_secret_is_shown_once_and_only_its_digest_is_kept(
    provider_and_secret: Provider,
) -> None:
    service_provider, secret = provider_and_secret
    assert len(secret) >= 43
    assert secret not in str(ServiceProviderSecret.objects.values())
    assert secret not in str(list(Event.objects.values()))
    found = authenticate_service_provider(client_id=str(service_provider.pk), secret=secret)
    assert found == service_provider


def test_a_wrong_secret_id_or_state_is_one_refusal(
    provider_and_secret: Provider, now: datetime
) -> None:
    service_provider, secret = provider_and_secret
    client_id = str(service_provider.pk)
    tries = [
        (client_id, secret + "x"),
        (client_id, ""),
        ("nobody", secret),
        (client_id.upper(), secret),
    ]
    tries.append(("0192f1c8-0000-7000-8000-000000000001", secret))
    seen = set()
    for tried_id, tried in tries:
        with pytest.raises(InvalidClientError) as caught:
            authenticate_service_provider(client_id=tried_id, secret=tried)
        seen.add(str(caught.value))
    suspend_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    with pytest.raises(InvalidClientError) as caught:
        authenticate_service_provider(client_id=client_id, secret=secret)
    assert seen == {str(caught.value)}
    resume_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    assert authenticate_service_provider(client_id=client_id, secret=secret)
    revoke_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        resume_service_provider(service_provider=service_provider, actor=TESTER, now=now)


def test_a_service_provider_is_read_again_after_each_change_of_its_status(
    provider_and_secret: Provider, now: datetime
) -> None:
    row = provider_and_secret[0]
    acts = (suspend_service_provider, resume_service_provider, revoke_service_provider)
    for act, status in zip(acts, ("suspended", "active", "revoked"), strict=True):
        act(service_provider=row, actor=TESTER, now=now)
        assert row.status == status


def test_a_secret_ends_once(provider_and_secret: Provider, now: datetime) -> None:
    row = provider_and_secret[0].secrets.get()
    end_secret(secret=row, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        end_secret(secret=row, actor=TESTER, now=now + timedelta(seconds=1))
    row.refresh_from_db()
    assert row.revoked_at == now


def test_two_secrets_overlap_and_the_third_ends_the_first(
    provider_and_secret: Provider, now: datetime
) -> None:
    service_provider, first = provider_and_secret
    client_id = str(service_provider.pk)
    second = rotate_secret(service_provider=service_provider, actor=TESTER, now=now)
    for secret in (first, second):
        assert authenticate_service_provider(client_id=client_id, secret=secret)
    third = rotate_secret(service_provider=service_provider, actor=TESTER, now=now)
    for secret in (second, third):
        assert authenticate_service_provider(client_id=client_id, secret=secret)
    with pytest.raises(InvalidClientError):
        authenticate_service_provider(client_id=client_id, secret=first)


@pytest.mark.parametrize(
    "audience",
    [
        "https://sp.example", "https://sp.example/v1", "https://sp.example:8443", "http://127.0.0.1:8001",
        "http://localhost:8001/api",
    ],
)  # fmt: skip
def test_audiences_of_development(audience: str, now: datetime) -> None:
    assert provider(audience, now)[0].audience == audience


BAD_AUDIENCES = [
    "", "sp.example", "ftp://sp.example", "http://sp.example", "https://sp.example/", "https://sp.example/v1/",
    "https://SP.example", "https://sp.example:443", "https://user@sp.example", "https://sp.example?x=1",
    "https://sp.example#x", "https://sp.example/a/../b", "https://sp.example/%2e%2e/b", "https://sp.example/%2fa%zz",
    "https://sp.example\\a", "https://sp.example/" + "a" * 250, "http://localhost:8000", "http://localhost:8000/sp",
    "https://", "javascript:alert(1)", "http://127.0.0.2:8001", "https://sp.example/%61pi", "https://sp.example/a%2Fb",
    "https://sp.example/%2561pi", "https://sp.example//api", "https://sp.example/api//v1", "https://sp.example/api;x",
    "https://sp.example/caf%C3%A9", "https://sp.example./api", "https://%73p.example", "https://sp.example/./api",
]  # fmt: skip


@pytest.mark.parametrize("audience", BAD_AUDIENCES)
def test_an_audience_is_a_plain_url_on_an_origin_not_ours(audience: str, now: datetime) -> None:
    with pytest.raises(InvalidRequestError):
        provider(audience, now)
    assert not ServiceProvider.objects.exists()


def test_production_takes_https_alone(now: datetime, settings: Any) -> None:
    settings.DEVELOPMENT = False
    settings.ISSUER = "https://registry.example"
    for audience in (
        "http://127.0.0.1:8001",
        "http://localhost:8001",
        "https://registry.example/api",
    ):
        with pytest.raises(InvalidRequestError):
            provider(audience, now)
    assert provider("https://sp.example", now)


@pytest.mark.parametrize(
    ("second", "overlaps"),
    [
        ("https://sp.example/v1", True),
        ("https://sp.example", True),
        ("https://sp.example/v1/events", True),
        ("https://sp.example/v10", False),
        ("https://sp.example/v2", False),
        ("https://sp.example:8443/v1", False),
        ("https://sp.example.evil/v1", False),
    ],
)
def test_audiences_of_providers_must_not_overlap(
    second: str, overlaps: bool, now: datetime
) -> None:
    provider("https://sp.example/v1", now)
    if overlaps:
        with pytest.raises(InvalidRequestError):
            provider(second, now)
    else:
        assert provider(second, now)


@pytest.mark.parametrize(
    ("earlier", "second"),
    [
        ("https://sp.example/%61pi", "https://sp.example/api"),
        ("https://sp.example/%61pi", "https://sp.example/api/v1"),
        ("https://sp.example/api%2Fv1", "https://sp.example/api"),
        ("https://sp.example/api%2fv1", "https://sp.example/api/v1/x"),
        ("https://sp.example/API", "https://sp.example/api"),
        ("https://sp.example/api", "https://sp.example/API/v1"),
    ],
)
def test_an_audience_of_before_overlaps_what_a_server_takes_it_for(
    earlier: str, second: str, now: datetime
) -> None:
    """Such paths could be registered before the rule on paths."""
    made, _ = provider("https://sp.example/x", now)
    ServiceProvider.objects.filter(pk=made.pk).update(audience=earlier)
    with pytest.raises(InvalidRequestError, match="overlaps"):
        provider(second, now)
    assert provider("https://sp.example/apis", now)


def test_slugs_come_from_names_and_stay_unique(now: datetime) -> None:
    slugs = [
        provider(f"https://sp{number}.example", now, name=name)[0].slug
        for number, name in enumerate(["Acme Mail", "Acme Mail", "Acme mail", "漢字"])
    ]
    assert slugs == ["acme-mail", "acme-mail-2", "acme-mail-3", "service-provider"]


@pytest.mark.parametrize(
    "entry", ["read", "read:", "admin:calendar", "read:../x", "transact:payments:5"]
)
def test_a_bad_allow_entry_is_refused(entry: str, now: datetime) -> None:
    with pytest.raises(InvalidRequestError):
        provider("https://sp.example", now, allowed=[entry])


def test_an_agent_may_look_a_service_provider_up(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    by_slug = agent.call("GET", "/v1/service-providers/acme-calendar").json()
    assert by_slug == agent.call("GET", f"/v1/service-providers/{service_provider.pk}").json()
    assert by_slug == {
        "id": str(service_provider.pk),
        "slug": "acme-calendar",
        "name": "Acme Calendar",
        "audience": "http://127.0.0.1:8001/v1",
        "allowed": ["read:calendar", "write:files", "transact:payments", "read:mail"],
        "require_nonce": False,
    }
    assert_refused(agent.call("GET", "/v1/service-providers/nobody"), 404, "not_found")


def test_DJ_8_email_address_longer_than_its_column_is_refused(now: datetime) -> None:
    long = f"{'a' * 60}@{'b' * 60}.{'c' * 60}.{'d' * 60}.{'e' * 20}.org"
    with pytest.raises(InvalidRequestError):
        create_human(email=long, name="Long", actor=TESTER, now=now)


def test_an_allow_list_has_an_end(now: datetime) -> None:
    with pytest.raises(InvalidRequestError):
        provider("https://sp.example", now, allowed=[f"read:r{number}" for number in range(65)])
