"""Propose, approve, refuse and read the catalogues of service providers."""

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Max

from agentauth.protocol.catalogue import (
    MAX_CATALOGUE,
    NO_CATALOGUE,
    Catalogue,
    CatalogueRef,
    catalogue_sha256,
    parse_catalogue,
)
from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidRequestError,
    InvalidStateError,
    RateLimitedError,
)
from audit import kinds
from audit.services import Actor, record
from kms.row_seals import select_sealed
from registry.models import CatalogueVersion, ServiceProvider
from registry.services.lookalikes import REGISTRY_NAME, mixes_alphabets, picture
from registry.services.service_providers import create_service_provider, lock_service_provider

logger = logging.getLogger(__name__)

# An administrator reads each proposal, and each takes a row of up to 16 kB.
MAX_PROPOSED: int = 20
PROPOSED_WITHIN = timedelta(days=1)
# Proposals that were never approved. Approved versions stay: receipts name them.
_KEPT = timedelta(days=30)
_WORD = re.compile(r"\w+")
# Words of a name that a text may seem to contain.
_LONGEST = 6


@dataclass(frozen=True, slots=True)
class Published:
    """An approved version: its words, and how a statement names it."""

    ref: CatalogueRef
    catalogue: Catalogue


def ref_of(row: CatalogueVersion) -> CatalogueRef:
    """How a statement names this version, also one that this release cannot read."""
    return CatalogueRef(row.version, catalogue_sha256(row.document.encode()))


def read_catalogue(row: CatalogueVersion) -> Published:
    """The catalogue of a row, approved or not. Raises InvalidRequestError if it is unreadable."""
    return _read(row.version, row.document)


@lru_cache(maxsize=256)
def _read(version: int, document: str) -> Published:
    raw = document.encode()
    body = read_object(raw, max_bytes=MAX_CATALOGUE)
    return Published(CatalogueRef(version, catalogue_sha256(raw)), parse_catalogue(body))


def published_catalogues(providers: Collection[UUID]) -> dict[UUID, Published]:
    """The approved catalogues of these providers, by id. One query; raises django.db errors.

    A row that has no valid seal, or that this release cannot read, counts as none: people then read
    only the registry's own sentences.
    """
    approved = CatalogueVersion.objects.filter(
        service_provider_id__in=set(providers), status=CatalogueVersion.Status.APPROVED
    )
    found = {}
    for row in select_sealed(approved):
        try:
            found[row.service_provider_id] = read_catalogue(row)
        except AgentAuthError:
            logger.exception("Catalogue %s cannot be read.", row.pk)
    return found


def published_catalogue(provider: ServiceProvider) -> Published | None:
    """The provider's approved catalogue, if it has one. One query."""
    return published_catalogues([provider.pk]).get(provider.pk)


def words_of(published: Published | None) -> Catalogue:
    """The catalogue, or an empty one."""
    return published.catalogue if published else NO_CATALOGUE


def propose_catalogue(
    *, service_provider: ServiceProvider, document: object, actor: Actor, now: datetime
) -> tuple[CatalogueVersion, bool]:
    """Store `document` as the provider's next version, in place of one that still waits.

    Returns the version and whether it is new: a document equal to the one that waits, or to the
    approved one if none waits, changes nothing.
    Raises InvalidRequestError for a document that fails docs/protocol.md section 3,
    RateLimitedError, InvalidStateError if the provider is revoked.
    """
    catalogue = parse_catalogue(document)
    _check_alphabets(catalogue)
    text = catalogue.canonical().decode()
    with transaction.atomic():
        lock_service_provider(service_provider)
        rows = CatalogueVersion.objects.filter(service_provider=service_provider)
        standing = latest_of(service_provider)
        if standing and standing.document == text:
            return standing, False
        _check_rate(service_provider, now)
        rows.filter(status=CatalogueVersion.Status.PROPOSED).update(
            status=CatalogueVersion.Status.WITHDRAWN, decided_at=now
        )
        last = rows.aggregate(last=Max("version"))["last"] or 0
        _forget_old(service_provider, now)
        row = CatalogueVersion.objects.create(
            service_provider=service_provider, version=last + 1, document=text, proposed_at=now
        )
        _record(kinds.CATALOGUE_PROPOSED, row, actor, now)
    return row, True


def create_with_catalogue(
    *,
    name: str,
    audience: str,
    document: object,
    allowed: Sequence[str] = (),
    is_auditor: bool = False,
    require_nonce: bool = False,
    actor: Actor,
    now: datetime,
) -> tuple[ServiceProvider, str]:
    """`create_service_provider`, with its first catalogue proposed in the same transaction.

    Raises what both raise.
    """
    with transaction.atomic():
        row, secret = create_service_provider(
            name=name,
            audience=audience,
            allowed=allowed,
            is_auditor=is_auditor,
            require_nonce=require_nonce,
            actor=actor,
            now=now,
        )
        propose_catalogue(service_provider=row, document=document, actor=actor, now=now)
    return row, secret


def latest_of(provider: ServiceProvider) -> CatalogueVersion | None:
    """The version that waits for an administrator, else the approved one; None if neither."""
    states = CatalogueVersion.Status
    rows = CatalogueVersion.objects.filter(
        service_provider=provider, status__in=[states.PROPOSED, states.APPROVED]
    )
    return rows.order_by("-version").first()


def approve_catalogue(*, row: CatalogueVersion, actor: Actor, now: datetime) -> None:
    """Make this version the one that people read.

    Approvals calls this with an administrator's verified signature over exactly this version.
    Raises InvalidStateError if it no longer waits, or the provider is revoked.
    """
    states = CatalogueVersion.Status
    with transaction.atomic():
        lock_service_provider(row.service_provider)
        held = _waiting(row)
        CatalogueVersion.objects.filter(
            service_provider_id=held.service_provider_id, status=states.APPROVED
        ).update(status=states.REPLACED, decided_at=now, seal=None)
        held.status, held.decided_at = states.APPROVED, now
        held.set_seal()
        held.save(update_fields=["status", "decided_at", "seal"])
        _record(kinds.CATALOGUE_APPROVED, held, actor, now)


def refuse_catalogue(*, row: CatalogueVersion, actor: Actor, now: datetime) -> None:
    """Refuse a version that waits. The approved one stays. Raises InvalidStateError."""
    with transaction.atomic():
        lock_service_provider(row.service_provider)
        held = _waiting(row)
        held.status, held.decided_at = CatalogueVersion.Status.REFUSED, now
        held.save(update_fields=["status", "decided_at"])
        _record(kinds.CATALOGUE_REFUSED, held, actor, now)


def resembled_names(catalogue: Catalogue, provider: ServiceProvider) -> Iterator[tuple[str, str]]:
    """Texts that contain, or seem to contain, the name of this registry or of another service.

    Each with that name. One query.
    """
    others = ServiceProvider.objects.exclude(pk=provider.pk).exclude(
        status=ServiceProvider.Status.REVOKED
    )
    names = [REGISTRY_NAME, str(settings.RP_ID), *others.values_list("name", flat=True)]
    known = {picture(name): name for name in names}
    for place, text in catalogue.texts():
        words = text.split()
        phrases = (words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1))
        found = {known.get(picture("".join(each))) for each in phrases if len(each) <= _LONGEST}
        yield from ((place, name) for name in sorted(filter(None, found)))


def _check_alphabets(catalogue: Catalogue) -> None:
    """Refuse words that mix alphabets, as fakes do: `pаy` with a Cyrillic а."""
    for place, text in catalogue.texts():
        for word in _WORD.findall(text):
            if mixes_alphabets(word):
                raise InvalidRequestError(
                    f"catalogue: {place} has a word that mixes alphabets, such as Latin and "
                    "Cyrillic. Write each word in one alphabet."
                )


def _check_rate(provider: ServiceProvider, now: datetime) -> None:
    since = CatalogueVersion.objects.filter(
        service_provider=provider, proposed_at__gt=now - PROPOSED_WITHIN
    )
    times = list(since.order_by("-proposed_at").values_list("proposed_at", flat=True))
    if len(times) >= MAX_PROPOSED:
        left = times[MAX_PROPOSED - 1] + PROPOSED_WITHIN - now
        raise RateLimitedError(
            f"At most {MAX_PROPOSED} catalogues may be proposed in 24 hours. Wait, then propose "
            "the latest one.",
            retry_after=int(left.total_seconds()) + 1,
        )


def _forget_old(provider: ServiceProvider, now: datetime) -> None:
    states = CatalogueVersion.Status
    CatalogueVersion.objects.filter(
        service_provider=provider,
        status__in=[states.REFUSED, states.WITHDRAWN],
        decided_at__lt=now - _KEPT,
    ).delete()


def _waiting(row: CatalogueVersion) -> CatalogueVersion:
    """The row, locked. Raises InvalidStateError unless it waits, with the words the caller read."""
    held = CatalogueVersion.objects.select_for_update().filter(pk=row.pk).first()
    if held is None or held.status != CatalogueVersion.Status.PROPOSED:
        raise InvalidStateError("This version no longer waits for a decision. Reload the page.")
    if held.document != row.document:
        # The seal must cover the words that were read and signed, not a later change.
        raise InvalidStateError("The words of this version have changed. Reload the page.")
    return held


def _record(kind: str, row: CatalogueVersion, actor: Actor, now: datetime) -> None:
    record(
        kind=kind,
        actor=actor,
        at=now,
        service_provider_id=row.service_provider_id,
        data={"version": row.version, "sha256": catalogue_sha256(row.document.encode())},
    )
