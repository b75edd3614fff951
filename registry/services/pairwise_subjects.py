"""The `sub` of a person at a service provider, and which subject key makes it.

Each pair of person and service provider keeps its first version of the key, so that a new key
changes no `sub` (docs/protocol.md section 7). Its row is written before its first token; if two
processes race, one writes it. `settings.SUBJECT_KEYS` has the versions, the first for new pairs.
Pairs without a row have the version `legacy`: the key that was SECRET_KEY before subject keys
existed.
"""

import hashlib
import hmac
import logging
import uuid
from collections.abc import Collection

from django.conf import settings
from django.db.models import Exists, OuterRef

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import InvalidStateError, TemporarilyUnavailableError
from registry.models import Grant, PairwiseSubject

logger = logging.getLogger(__name__)

LEGACY = "legacy"
_LABEL = "agentauth/subject/v1"
# Pairs are pinned in batches of this size, to bound memory.
_PART = 1_000


def pairwise_subject(
    human_id: uuid.UUID, service_provider_id: uuid.UUID, *, version: str | None
) -> str:
    """The `sub` of this person at this service provider. `version` is the pair's, or None.

    None gives the pair the present version. Two service providers cannot tell that it is the same
    person. Raises TemporarilyUnavailableError if this process lacks the version, and django.db
    errors.
    """
    if version is None:
        version = _begin(human_id, service_provider_id)
    key = settings.SUBJECT_KEYS.get(version)
    if key is None:
        # Unlikely: such a process does not match the recorded settings and does not serve
        # (`settings_agreement.py`).
        logger.error(
            "SUBJECT_KEY lacks the version %s, which existing pairs use: add its line", version
        )
        raise TemporarilyUnavailableError(
            "This process has other settings than the rest of the installation."
        )
    message = "\x00".join((_LABEL, str(service_provider_id), str(human_id))).encode()
    return b64u_encode(hmac.new(key, message, hashlib.sha256).digest())


def _begin(human_id: uuid.UUID, service_provider_id: uuid.UUID) -> str:
    """Record the version of a pair before its first token, and return it.

    It is the present one, or what another process just wrote.
    """
    present = next(iter(settings.SUBJECT_KEYS))
    pair = PairwiseSubject(
        human_id=human_id, service_provider_id=service_provider_id, key_version=present
    )
    PairwiseSubject.objects.bulk_create([pair], ignore_conflicts=True)
    written = PairwiseSubject.objects.filter(
        human_id=human_id, service_provider_id=service_provider_id
    )
    return str(written.values_list("key_version", flat=True).get())


def pin_to_legacy() -> None:
    """Give every pair with a grant and no row the version `legacy`, which made its `sub` so far.

    Call this before another version is used for new pairs, once no process of an earlier release
    runs.
    """
    rows = PairwiseSubject.objects.filter(
        human_id=OuterRef("agent__human_id"), service_provider_id=OuterRef("service_provider_id")
    )
    bare = Grant.objects.filter(agent__human__isnull=False).exclude(Exists(rows))
    pairs = bare.values_list("agent__human_id", "service_provider_id").distinct()
    PairwiseSubject.objects.bulk_create(
        (
            PairwiseSubject(human_id=human, service_provider_id=provider, key_version=LEGACY)
            for human, provider in pairs.iterator(_PART)
        ),
        batch_size=_PART,
        ignore_conflicts=True,
    )


def check_not_needed(versions: Collection[str]) -> None:
    """Raises InvalidStateError if a pair's `sub` is made with one of these subject key versions."""
    for version in sorted(versions):
        if PairwiseSubject.objects.filter(key_version=version).exists():
            raise InvalidStateError(
                f"SUBJECT_KEY must keep its line {version!r} as recorded: existing people "
                "have a `sub` made with that key, and "
                "with another one their service providers would not recognise them."
            )
