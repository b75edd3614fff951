"""Seals: a MAC under SECRET_KEY proves that a service wrote a row that gives a right.

An attacker with access to the database alone can write rows, but no seals. A row that is set back
to an earlier state, or deleted and inserted again, has a seal that ended: a trigger stores each
replaced or deleted seal in a table from which the serving role cannot delete (ADR 30).
"""

import hmac
import logging
import secrets
import uuid
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, Final, Self, TypeVar

from django.conf import settings
from django.db import models
from django.db.models import Exists, OuterRef, QuerySet
from django.utils.crypto import salted_hmac

from agentauth.protocol.encoding import b64u_decode, b64u_encode, canonical_json
from agentauth.protocol.errors import EncodingError

logger = logging.getLogger(__name__)

# For raw SQL: whether the seal of a row has ended. {}: alias and column.
ENDED: Final = "EXISTS (SELECT 1 FROM kms_endedseal ended WHERE ended.seal = {})"
_LABEL: Final = "agentauth/seal/v1"
# Without a salt, a row that is changed and changed back would get the seal that ended.
_SALT_BYTES: Final = 16
_TOLD: Final = 1_024


class EndedSeal(models.Model):
    """A seal that was replaced, or whose row was deleted.

    Triggers of the sealed tables only insert.
    """

    seal = models.CharField(primary_key=True, max_length=80)


class SealsPending(models.Model):
    """Holds one row until `seal_rows` ran, if the installation had rows before seals.

    Only deleted.
    """

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="seals_pending_only_one")
        ]


class Sealed(models.Model):
    """A row whose fields in `SEALED` give a right.

    A service that writes one of them calls `set_seal`.
    """

    SEALED: ClassVar[Sequence[str]]
    # Those of them that are left out while null. A field that is added later is one of these, so
    # that the seals of older rows stay valid, and the previous release can check rows without it.
    SEALED_IF_SET: ClassVar[Collection[str]] = ()

    # Nullable: to add a default, SQLite would rebuild the table without its triggers.
    seal = models.CharField(max_length=80, null=True, editable=False)  # noqa: DJ001 — as said

    class Meta:
        abstract = True

    @classmethod
    def giving(cls) -> QuerySet[Self]:
        """The rows that need a seal: those whose seal is checked, in this state or a later one.

        Other rows have ended permanently or give nothing: do not call `is_sealed`, `fits` or
        `select_sealed` on them.
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
        self.seal = b64u_encode(salt + _mac(settings.SECRET_KEY, salt, _sealed_bytes(self)))

    def is_sealed(self) -> bool:
        """Whether a service wrote this row and its seal has not ended.

        One query; raises django.db errors.
        """
        if not DEMAND.holds():
            return True
        return self.fits() and not EndedSeal.objects.filter(seal=str(self.seal)).exists()

    def fits(self, *, key: str | None = None) -> bool:
        """Whether the seal matches the row under `key`, or under any of our keys.

        It may have ended. Without `key`, True while `seal_rows` is outstanding.
        """
        if key is None and not DEMAND.holds():
            return True
        try:
            seal, said = b64u_decode(self.seal or ""), _sealed_bytes(self)
        except EncodingError:
            # No service writes such values.
            seal, said = b"", b""
        salt, mac = seal[:_SALT_BYTES], seal[_SALT_BYTES:]
        keys = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS) if key is None else (key,)
        if seal and any(hmac.compare_digest(mac, _mac(each, salt, said)) for each in keys):
            return True
        if key is None:
            _tell(self.table(), str(self.pk), self.seal)
        return False


_S = TypeVar("_S", bound=Sealed)


def select_sealed(rows: QuerySet[_S]) -> list[_S]:
    """The rows with a valid seal, in one query. Raises django.db errors."""
    ended = EndedSeal.objects.filter(seal=OuterRef("seal"))
    return [row for row in rows.filter(~Exists(ended)) if row.fits()]


class _Demand:
    """Whether every row needs a seal. Once true it stays true: the serving role cannot undo it."""

    def __init__(self) -> None:
        self._holds = False

    def holds(self) -> bool:
        self._holds = self._holds or not SealsPending.objects.exists()
        return self._holds


DEMAND: Final = _Demand()


def _sealed_bytes(row: Sealed) -> bytes:
    """The table and the sealed fields as bytes.

    Raises EncodingError for values no service writes.
    """
    values = {name: getattr(row, name) for name in row.SEALED}
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


def _mac(secret: str, salt: bytes, said: bytes) -> bytes:
    return salted_hmac(_LABEL, salt + said, secret=secret, algorithm="sha256").digest()


@lru_cache(maxsize=_TOLD)
def _tell(table: str, pk: str, _seal: str | None) -> None:
    # Log each such row once per process, not at every check.
    logger.error(
        "Refusing row %s of %s: no service wrote its content. Run `%s verify_audit`.",
        pk,
        table,
        settings.COMMAND,
    )
