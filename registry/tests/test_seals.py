"""Seals: what they cover, their key, and how existing installations get them."""

from datetime import datetime
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import call_command

from agentauth.protocol.errors import InvalidStateError
from audit.models import Event
from kms import row_seals
from kms.models import EndedSeal, SealsPending
from kms.row_seals import select_sealed
from kms.seal_backfill import seal_rows, unsealed_rows
from registry.models import ServiceProvider
from registry.services.service_providers import change_allowed
from registry.services.settings_agreement import record_settings
from registry.tests.cast import TESTER

pytestmark = pytest.mark.django_db
NEW = "another-secret-for-tests-0123456789-abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def pending(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation from before seals, as its migration left it."""
    SealsPending.objects.create()
    monkeypatch.setattr(row_seals, "DEMAND", row_seals._Demand())


def read(provider: ServiceProvider) -> ServiceProvider:
    return ServiceProvider.objects.get(pk=provider.pk)


def test_two_seals_of_one_content_differ(service_provider: ServiceProvider) -> None:
    first = service_provider.seal
    service_provider.set_seal()
    assert service_provider.seal != first
    assert service_provider.fits()


def test_what_a_service_changed_and_changed_back_is_sealed(
    service_provider: ServiceProvider, now: datetime
) -> None:
    before = service_provider.allowed
    for allowed in (["read:mail"], before):
        change_allowed(service_provider=service_provider, allowed=allowed, actor=TESTER, now=now)
        assert read(service_provider).is_sealed()
    assert EndedSeal.objects.count() == 2


def test_DJ_17_the_seal_of_another_row_or_table_is_none(service_provider: ServiceProvider) -> None:
    secret = service_provider.secrets.get()
    service_provider.seal = secret.seal
    assert not service_provider.fits()
    for broken in (None, "", "x", "é", "A" * 64, f"{secret.seal}AAAA"):
        service_provider.seal = broken
        assert not service_provider.fits()


def test_DJ_17_a_value_that_no_service_writes_is_not_sealed(
    service_provider: ServiceProvider,
) -> None:
    service_provider.allowed = [1.5]
    assert not service_provider.fits()


def test_many_rows_are_judged_in_one_query(
    service_provider: ServiceProvider, django_assert_num_queries: Any
) -> None:
    assert select_sealed(ServiceProvider.objects.all()) == [service_provider]
    with django_assert_num_queries(1):
        assert select_sealed(ServiceProvider.objects.all()) == [service_provider]
    EndedSeal.objects.create(seal=str(service_provider.seal))
    assert select_sealed(ServiceProvider.objects.all()) == []


def test_new_installation_awaits_no_seals() -> None:
    assert not SealsPending.objects.exists()


@pytest.mark.usefixtures("pending")
def test_ended_seal_gives_no_right_even_before_the_upgrade_ends(
    service_provider: ServiceProvider,
) -> None:
    EndedSeal.objects.create(seal=str(service_provider.seal))
    assert not read(service_provider).is_sealed()
    assert not read(service_provider).is_sealed(ended=True)
    assert select_sealed(ServiceProvider.objects.all()) == []
    assert list(unsealed_rows()) == [("registry_serviceprovider", str(service_provider.pk))]


@pytest.mark.usefixtures("pending")
def test_before_the_upgrade_ends_rows_are_believed_and_from_then_on_sealed(
    service_provider: ServiceProvider, now: datetime
) -> None:
    ServiceProvider.objects.update(seal=None, name="As release 3 wrote it")
    assert read(service_provider).is_sealed()
    assert select_sealed(ServiceProvider.objects.all())
    assert list(unsealed_rows()) == []
    done = seal_rows(actor=TESTER, now=now)
    assert (done.sealed, done.refused) == ({"registry_serviceprovider": 1}, {})
    assert read(service_provider).is_sealed()
    kinds = Event.objects.filter(kind__startswith="kms.").values_list("kind", flat=True)
    assert sorted(kinds) == ["kms.rows.sealed", "kms.seals.demanded"]
    ServiceProvider.objects.update(seal=None)
    assert not read(service_provider).is_sealed()


def test_DJ_17_command_seals_no_row_changed_outside_a_service(
    service_provider: ServiceProvider, now: datetime
) -> None:
    ServiceProvider.objects.update(name="Another")
    done = seal_rows(actor=TESTER, now=now)
    assert (done.sealed, done.refused) == (
        {},
        {"registry_serviceprovider": [str(service_provider.pk)]},
    )
    assert not read(service_provider).is_sealed()
    assert seal_rows(adopt=True, actor=TESTER, now=now).sealed == {"registry_serviceprovider": 1}
    assert read(service_provider).is_sealed()
    event = Event.objects.get(kind="kms.rows.sealed")
    assert event.data["adopted"] == [str(service_provider.pk)]


def test_a_seal_that_ended_is_replaced_only_by_adopting(
    service_provider: ServiceProvider, now: datetime
) -> None:
    EndedSeal.objects.create(seal=str(service_provider.seal))
    assert not seal_rows(actor=TESTER, now=now).sealed
    assert seal_rows(adopt=True, actor=TESTER, now=now).sealed
    assert read(service_provider).is_sealed()


def test_new_secret_key_reseals_rows_before_the_old_one_is_removed(
    service_provider: ServiceProvider, now: datetime, settings: Any
) -> None:
    record_settings(actor=TESTER, now=now)
    old = settings.SECRET_KEY
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = NEW, [old]
    record_settings(change=["SECRET_KEY"], actor=TESTER, now=now)
    assert read(service_provider).is_sealed()
    settings.SECRET_KEY_FALLBACKS = []
    assert not read(service_provider).is_sealed()
    with pytest.raises(InvalidStateError, match=r"2 rows .* seal_rows"):
        record_settings(change=["SECRET_KEY"], actor=TESTER, now=now)
    settings.SECRET_KEY_FALLBACKS = [old]
    assert sum(seal_rows(actor=TESTER, now=now).sealed.values()) == 2
    settings.SECRET_KEY_FALLBACKS = []
    assert read(service_provider).is_sealed()
    record_settings(change=["SECRET_KEY"], actor=TESTER, now=now)


@pytest.mark.usefixtures("pending")
def test_check_deploy_says_that_rows_are_to_be_sealed(settings: Any) -> None:
    settings.DEVELOPMENT = False
    found = {each.id for each in run_checks(include_deployment_checks=True)}
    assert "agentauth.W054" in found
    call_command("seal_rows")
    found = {each.id for each in run_checks(include_deployment_checks=True)}
    assert "agentauth.W054" not in found


def test_the_command_says_which_rows_give_nothing(
    service_provider: ServiceProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("seal_rows")
    assert "Every row is sealed." in capsys.readouterr().out
    ServiceProvider.objects.update(seal=None)
    call_command("seal_rows")
    assert str(service_provider.pk) in capsys.readouterr().out
    call_command("seal_rows", "--adopt", "--operator", "ada")
    assert "registry_serviceprovider: sealed 1" in capsys.readouterr().out
    assert Event.objects.get(kind="kms.rows.sealed").actor_id == "command:ada"
