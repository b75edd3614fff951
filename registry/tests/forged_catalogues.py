"""Catalogues and logos written into the database, for tests/test_sealed_rows.py: none is shown."""

from typing import Any

from agentauth.protocol.encoding import sha256
from registry.models import CatalogueVersion, ServiceLogo
from registry.services.catalogues import published_catalogue
from registry.services.service_logos import shown_image, shown_logos
from registry.tests.describing import WORDS, published
from registry.tests.written_rows import inserted, write


def a_catalogue(world: Any) -> None:
    """The approved one with other words; then one that no administrator approved."""
    row = world.rows[CatalogueVersion]
    other = row.document.replace("Pays", "Sells")
    write(row, document=other)
    assert published_catalogue(world.provider) is None
    write(row, document=row.document)
    assert published_catalogue(world.provider) is not None
    write(row, status="replaced", decided_at=world.now)
    inserted(row, version=7, document=other, status="proposed", decided_at=None)
    CatalogueVersion.objects.filter(version=7).update(status="approved", decided_at=world.now)
    assert published_catalogue(world.provider) is None


def end_catalogue(world: Any) -> None:
    """Approve another, and end that one: the earlier one could come back then."""
    published(world.provider, world.now, {"resources": WORDS["resources"]})
    later = CatalogueVersion.objects.exclude(pk=world.rows[CatalogueVersion].pk)
    later.update(status="replaced", decided_at=world.now, seal=None)


def a_logo(world: Any) -> None:
    """Another picture under the digest; another digest; then one that no administrator approved."""
    row, other = world.rows[ServiceLogo], b"another picture"
    digest = sha256(other).hex()
    write(row, image=other)
    assert shown_image(row.sha256) is None
    write(row, sha256=digest)
    assert (shown_image(digest), shown_logos()) == (None, {})
    write(row, image=row.image, sha256=row.sha256)
    assert shown_logos() == {world.provider.pk: row.sha256}
    ServiceLogo.objects.filter(pk=row.pk).delete()
    inserted(row, image=other, sha256=digest)
    assert (shown_image(digest), shown_logos()) == (None, {})
