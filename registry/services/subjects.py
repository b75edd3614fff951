"""The `sub` of a person at a service provider, and which version of the subject key it is made by (docs/protocol.md section 7).

Each pair keeps the version it began with, so that a new key changes nobody's `sub`: its row is written before its first token,
and of two processes at once one writes it. `settings.SUBJECT_KEYS` has the versions, of which the first is for new pairs.
The version `legacy` is what pairs without a row began with: the key that was SECRET_KEY before there was a subject key.
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
# A pin is written in parts, so that none holds the memory of all.
_PART = 1_000


def pairwise_subject(human_id: uuid.UUID, service_provider_id: uuid.UUID, *, version: str | None) -> str:
    """The `sub` of this person there; `version` is the pair's, None where it has none yet: then it gets the present one.

    Two service providers cannot tell that it is the same person. Raises TemporarilyUnavailableError where this process lacks the
    version, and django.db errors.
    """
    if version is None:
        version = _begin(human_id, service_provider_id)
    key = settings.SUBJECT_KEYS.get(version)
    if key is None:
        # Recorded settings keep such a process from serving at all (`installation.py`).
        logger.error("SUBJECT_KEY lacks the version %s, which pairs use", version)
        raise TemporarilyUnavailableError("This process is not set up as the others are.")
    message = "\x00".join((_LABEL, str(service_provider_id), str(human_id))).encode()
    return b64u_encode(hmac.new(key, message, hashlib.sha256).digest())


def _begin(human_id: uuid.UUID, service_provider_id: uuid.UUID) -> str:
    """The version of a pair that gets its first token: the present one, or what another process wrote meanwhile."""
    present = next(iter(settings.SUBJECT_KEYS))
    pair = PairwiseSubject(human_id=human_id, service_provider_id=service_provider_id, key_version=present)
    PairwiseSubject.objects.bulk_create([pair], ignore_conflicts=True)
    written = PairwiseSubject.objects.filter(human_id=human_id, service_provider_id=service_provider_id)
    return str(written.values_list("key_version", flat=True).get())


def pin_to_legacy() -> None:
    """Give every pair that has a grant and no row the version `legacy`, by which processes before there were rows made its `sub`.

    Before another version is used for new pairs; by then no process of such a version may run.
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
    """Raises InvalidStateError where a pair's `sub` is made by one of these `versions` of the subject key."""
    for version in sorted(versions):
        if PairwiseSubject.objects.filter(key_version=version).exists():
            raise InvalidStateError(
                f"SUBJECT_KEY: people have a `sub` made by the recorded key of version {version!r}. Keep that line: "
                "without it each of them would be somebody else to their service providers."
            )
