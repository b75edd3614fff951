"""Propose, approve, remove and read the logos of service providers (ADR 52)."""

import hmac
import logging
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import InvalidStateError
from audit import kinds
from audit.services import Actor, record
from kms.row_seals import select_sealed
from registry.models import ServiceLogo, ServiceProvider
from registry.services.service_providers import lock_service_provider

logger = logging.getLogger(__name__)


def propose_logo(
    *, service_provider: ServiceProvider, image: bytes, actor: Actor, now: datetime
) -> ServiceLogo:
    """Store a picture from `encode_logo` until an administrator signs, in place of one that waits.

    Raises InvalidStateError if the provider is revoked.
    """
    with transaction.atomic():
        lock_service_provider(service_provider)
        ServiceLogo.objects.filter(service_provider=service_provider, approved_at=None).delete()
        row = ServiceLogo(
            service_provider=service_provider,
            image=image,
            sha256=sha256(image).hex(),
            proposed_at=now,
        )
        row.set_seal()
        row.save(force_insert=True)
        _record(kinds.LOGO_PROPOSED, row, actor, now)
    return row


def approve_logo(*, row: ServiceLogo, actor: Actor, now: datetime) -> None:
    """Show this logo beside the service's name, in place of the one before.

    Approvals calls this with an administrator's verified signature over exactly this picture.
    Raises InvalidStateError if it no longer waits, or the provider is revoked.
    """
    with transaction.atomic():
        lock_service_provider(row.service_provider)
        held = ServiceLogo.objects.select_for_update().filter(pk=row.pk, approved_at=None).first()
        # The seal must cover the picture that was seen and signed, not a later one.
        if held is None or held.sha256 != row.sha256 or not is_ours(held):
            raise InvalidStateError("This logo no longer waits for a decision. Reload the page.")
        ServiceLogo.objects.filter(
            service_provider_id=held.service_provider_id, approved_at__isnull=False
        ).delete()
        held.approved_at = now
        held.set_seal()
        held.save(update_fields=["approved_at", "seal"])
        _record(kinds.LOGO_APPROVED, held, actor, now)


def remove_logo(
    *, service_provider: ServiceProvider, digest: str, actor: Actor, now: datetime
) -> None:
    """Delete the logo with this digest, waiting or approved.

    Without one, pages show the registry's own mark. If both have the digest, the one that waits is
    deleted. Raises InvalidStateError if there is none.
    """
    with transaction.atomic():
        rows = ServiceLogo.objects.select_for_update().filter(
            service_provider=service_provider, sha256=digest
        )
        row = min(rows, key=lambda each: each.approved_at is not None, default=None)
        if row is None:
            raise InvalidStateError("This logo was removed or replaced already. Reload the page.")
        row.delete()
        _record(kinds.LOGO_REMOVED, row, actor, now)


def shown_logos() -> Mapping[UUID, str]:
    """The digest of each approved logo, by service provider. One query."""
    rows = _approved().defer("image")
    return {row.service_provider_id: row.sha256 for row in select_sealed(rows)}


def services_with_copy(row: ServiceLogo) -> list[ServiceProvider]:
    """Other service providers whose approved logo is the same picture, by name."""
    others = _approved().filter(sha256=row.sha256).exclude(service_provider=row.service_provider_id)
    found = select_sealed(others.select_related("service_provider").defer("image"))
    return sorted((each.service_provider for each in found), key=lambda each: each.name)


def shown_image(digest: str) -> bytes | None:
    """The approved picture with this digest; None if there is none. At most two queries."""
    for row in select_sealed(_approved().filter(sha256=digest)):
        if is_whole(row):
            return bytes(row.image)
        logger.error("The picture of logo %s is not the one that was approved.", row.pk)
    return None


def is_whole(row: ServiceLogo) -> bool:
    """Whether the row's picture is the one that its digest names."""
    return hmac.compare_digest(sha256(bytes(row.image)).hex(), row.sha256)


def is_ours(row: ServiceLogo) -> bool:
    """Whether this registry wrote this row, picture included. One query."""
    return is_whole(row) and row.is_sealed()


def _approved() -> QuerySet[ServiceLogo]:
    return ServiceLogo.objects.filter(approved_at__isnull=False)


def _record(kind: str, row: ServiceLogo, actor: Actor, now: datetime) -> None:
    record(
        kind=kind,
        actor=actor,
        at=now,
        service_provider_id=row.service_provider_id,
        data={"sha256": row.sha256},
    )
