"""What changes about a service's words and logo under an open page (test_ceremonies.py)."""

from django.utils import timezone

from registry.models import CatalogueVersion, ServiceLogo, ServiceProvider
from registry.services.catalogues import approve_catalogue
from registry.services.service_providers import create_service_provider
from registry.tests import logos
from registry.tests.cast import TESTER


def other_words() -> None:
    CatalogueVersion.objects.update(document='{"actions":{},"resources":{}}')


def other_approved() -> None:
    """An earlier version came back, while this one waits."""
    provider, now = ServiceProvider.objects.get(), timezone.now()
    row = CatalogueVersion(
        service_provider=provider,
        version=7,
        document='{"actions":{},"resources":{}}',
        status="proposed",
        proposed_at=now,
    )
    waiting = CatalogueVersion.objects.get()
    CatalogueVersion.objects.filter(pk=waiting.pk).delete()
    row.save()
    approve_catalogue(row=row, actor=TESTER, now=now)
    waiting.save(force_insert=True)


def similar_service() -> None:
    """Another service: its name is in the words that wait, and its logo is the one that waits."""
    name, now = "Your calendar", timezone.now()
    create_service_provider(name=name, audience="http://127.0.0.1:8099", actor=TESTER, now=now)
    logos.shown(ServiceProvider.objects.get(name=name), now)


def other_logo() -> None:
    logos.logo(ServiceProvider.objects.get(), timezone.now(), (1, 2, 3))


def other_logo_approved() -> None:
    """An administrator approved another one, while this one waits."""
    provider, now = ServiceProvider.objects.get(), timezone.now()
    ServiceLogo.objects.all().delete()
    logos.shown(provider, now, (1, 2, 3))
    # The same picture as before.
    logos.logo(provider, now)
