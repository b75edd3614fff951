"""Seals: a MAC under SECRET_KEY proves that this registry wrote a row that gives a right.

An attacker with access to the database alone can write rows, but no seals. A trigger stores each
seal that is replaced, or whose row is deleted, in a table from which the serving role cannot
delete. If an attacker restores a row's earlier content, its old seal is already in that table of
ended seals, so it no longer counts (ADR 30).

A release can seal more fields than the previous one (`SEALED_BY_PREVIOUS_RELEASE`), which runs
beside it during an upgrade. The seal is a salt and a MAC over the previous release's fields. Half
of the salt is itself a MAC over all fields; the previous release cannot tell it from random bytes
(ADR 49).
"""

import hmac
import logging
import secrets
import uuid
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache
from typing import Any, ClassVar, Final, Self, TypeVar

from django.conf import settings
from django.db import models
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils.crypto import salted_hmac

from agentauth.protocol.encoding import b64u_decode, b64u_encode, canonical_json
from agentauth.protocol.errors import EncodingError

logger = logging.getLogger(__name__)

# For raw SQL: whether the seal of a row has ended. {}: alias and column.
ENDED: Final = "EXISTS (SELECT 1 FROM kms_endedseal ended WHERE ended.seal = {})"
_LABEL: Final = "agentauth/seal/v1"
_WIDE_LABEL: Final = "agentauth/seal/wide/v1"
# Without a salt, a row that is changed and changed back would get the seal that ended.
_SALT_BYTES: Final = 16
# In the salt of a wide seal: random bytes, then a MAC over all fields. 64 bits are enough, because
# the seal's MAC covers the salt: an attacker can only try rows against seals that we made.
_RANDOM_BYTES: Final = 8
_LOGGED_ROWS: Final = 1_024


class EndedSeal(models.Model):
    """A seal that was replaced, or whose row was deleted.

    Triggers of the sealed tables only insert.
    """

    seal = models.CharField(primary_key=True, max_length=80)


class SealsPending(models.Model):
    """Holds one row until `seal_rows` has run, if the installation is older than seals.

    The row is only ever deleted.
    """

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="seals_pending_only_one")
        ]


class WiderSealsPending(models.Model):
    """Holds one row until `seal_rows` has run after the upgrade to a release with wider seals.

    The row is only ever deleted. Not a row of SealsPending: the previous release would then demand
    no seals.
    """

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="wider_seals_pending_only_one")
        ]


class _Cover(IntEnum):
    """Which fields of a row its seal proves."""

    NONE = 0
    PREVIOUS_RELEASE = 1
    ALL = 2


class Sealed(models.Model):
    """A row whose fields in `SEALED` give a right.

    Code that writes one of them calls `set_seal`.
    """

    SEALED: ClassVar[Sequence[str]]
    # What the previous release seals, if that is less.
    SEALED_BY_PREVIOUS_RELEASE: ClassVar[Sequence[str]] = ()
    # Fields left out of the seal while null. An added field that is null in old rows can go here,
    # so that old seals stay valid; otherwise use SEALED_BY_PREVIOUS_RELEASE.
    SEALED_IF_SET: ClassVar[Collection[str]] = ()

    # Nullable: to add a default, SQLite would rebuild the table without its triggers.
    seal = models.CharField(max_length=80, null=True, editable=False)  # noqa: DJ001 — as said

    class Meta:
        abstract = True

    @classmethod
    def giving(cls) -> QuerySet[Self]:
        """The rows that can still give a right, now or after a change of state.

        Do not check the seal of any other row: it may be stale.
        """
        return cls.rows()

    @classmethod
    def rows(cls) -> QuerySet[Self]:
        return cls._default_manager.all()

    @classmethod
    def table(cls) -> str:
        return cls._meta.db_table

    def set_seal(self) -> None:
        """Seal the row's current values, which the caller has checked. The caller saves `seal`."""
        salt = secrets.token_bytes(_SALT_BYTES)
        if self.SEALED_BY_PREVIOUS_RELEASE:
            random = salt[:_RANDOM_BYTES]
            salt = random + _wide_mac(settings.SECRET_KEY, random, self)
        said = _sealed_bytes(self, self.SEALED_BY_PREVIOUS_RELEASE or self.SEALED)
        self.seal = b64u_encode(salt + _mac(_LABEL, settings.SECRET_KEY, salt + said))

    def is_sealed(self, *, ended: bool | None = None) -> bool:
        """Whether this registry wrote this row and its seal has not ended.

        `ended` is the value of ENDED in the statement that read the row; None takes one query.
        Raises django.db errors.
        """
        if not self.fits():
            return False
        if ended is None:
            ended = EndedSeal.objects.filter(seal=str(self.seal)).exists()
        return not ended

    def fits(self, *, key: str | None = None) -> bool:
        """Whether the seal matches the row under `key`, or under any of our keys.

        The seal may have ended. Without `key`, a seal of the previous release counts until
        `seal_rows` has ended the upgrade, and any row while no seals are demanded at all.
        """
        if key is not None:
            return self._cover(key) == _Cover.ALL
        if not DEMAND.holds():
            return True
        covers = set()
        for each in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
            covers.add(cover := self._cover(each))
            if cover == _Cover.ALL:
                return True
        if _Cover.PREVIOUS_RELEASE in covers and not WIDER_DEMAND.holds():
            return True
        _log_unsealed_row(self.table(), str(self.pk), self.seal)
        return False

    def fits_previous_release(self, *, key: str) -> bool:
        """Whether the seal matches what the previous release seals; the other fields may differ."""
        return self._cover(key) >= _Cover.PREVIOUS_RELEASE

    def _cover(self, key: str) -> _Cover:
        try:
            seal = b64u_decode(self.seal or "")
            said = _sealed_bytes(self, self.SEALED_BY_PREVIOUS_RELEASE or self.SEALED)
        except EncodingError:
            # This registry writes no such values.
            return _Cover.NONE
        salt, mac = seal[:_SALT_BYTES], seal[_SALT_BYTES:]
        if not hmac.compare_digest(mac, _mac(_LABEL, key, salt + said)):
            return _Cover.NONE
        if not self.SEALED_BY_PREVIOUS_RELEASE:
            return _Cover.ALL
        random, wide = salt[:_RANDOM_BYTES], salt[_RANDOM_BYTES:]
        is_wide = hmac.compare_digest(wide, _wide_mac(key, random, self))
        return _Cover.ALL if is_wide else _Cover.PREVIOUS_RELEASE


_S = TypeVar("_S", bound=Sealed)


def select_sealed(rows: QuerySet[_S]) -> list[_S]:
    """The rows for which `is_sealed` is true, in one query. Raises django.db errors."""
    return [row for row in rows.filter(not_ended()) if row.fits()]


def not_ended(seal: str = "seal") -> Q:
    """The condition that the seal at this path has not ended; a row without a seal meets it.

    For queries whose rows are compared with their seals later (`fits`).
    """
    return Q(~Exists(EndedSeal.objects.filter(seal=OuterRef(seal))))


class _Demand:
    """Whether the table `pending` is empty. Once true, it stays true in this process."""

    def __init__(self, pending: "models.Manager[Any]" = SealsPending.objects) -> None:
        self._pending, self._holds = pending, False

    def holds(self) -> bool:
        self._holds = self._holds or not self._pending.exists()
        return self._holds


# Whether every row needs a seal.
DEMAND: Final = _Demand()
# Whether a seal of the previous release no longer suffices.
WIDER_DEMAND: Final = _Demand(WiderSealsPending.objects)


def _sealed_bytes(row: Sealed, names: Sequence[str]) -> bytes:
    """The table and these fields as bytes.

    Raises EncodingError for values that this registry does not write.
    """
    values = {name: getattr(row, name) for name in names}
    fields = {
        name: _plain(value)
        for name, value in values.items()
        if value is not None or name not in row.SEALED_IF_SET
    }
    return canonical_json([row.table(), fields])


def _plain(value: Any) -> Any:
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value


def _wide_mac(secret: str, random: bytes, row: Sealed) -> bytes:
    mac = _mac(_WIDE_LABEL, secret, random + _sealed_bytes(row, row.SEALED))
    return mac[: _SALT_BYTES - _RANDOM_BYTES]


def _mac(label: str, secret: str, said: bytes) -> bytes:
    return salted_hmac(label, said, secret=secret, algorithm="sha256").digest()


@lru_cache(maxsize=_LOGGED_ROWS)
def _log_unsealed_row(table: str, pk: str, _seal: str | None) -> None:
    # Log each such row once per process, not at every check.
    logger.error(
        "Refusing row %s of %s: its seal does not match. Either SECRET_KEY changed without "
        "SECRET_KEY_FALLBACKS, or something other than this registry wrote the row. Run "
        "`%s verify_audit`.",
        pk,
        table,
        settings.COMMAND,
    )
