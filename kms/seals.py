"""Seals: a row that gives a right carries a proof, under SECRET_KEY, that a service of ours wrote what gives it.

An attacker who has the database alone can write rows, but no seals. A row that is set back to what it was, or deleted and
inserted again, has a seal that ended: a trigger keeps each seal that was replaced or deleted, in a table from which the
serving role cannot delete (docs/adr/0030-a-row-that-gives-a-right-is-sealed.md).
"""

import hmac
import logging
import secrets
import uuid
from collections.abc import Sequence
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

# How a statement of its own asks whether the seal of a row (alias and column in place of {}) ended.
ENDED: Final = "EXISTS (SELECT 1 FROM kms_endedseal ended WHERE ended.seal = {})"
_LABEL: Final = "agentauth/seal/v1"
# So that a row that is changed and changed back by us has another seal than the one that ended.
_SALT_BYTES: Final = 16
_TOLD: Final = 1_024


class EndedSeal(models.Model):
    """A seal that was replaced, or whose row was deleted. Only added to, by a trigger of the sealed tables."""

    seal = models.CharField(primary_key=True, max_length=80)


class SealsPending(models.Model):
    """One row from the migration of an installation that had rows before seals, until `seal_rows` ran. Only deleted."""

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="seals_pending_only_one")]


class Sealed(models.Model):
    """A row of which the fields in `SEALED` give a right. Services call `set_seal` when they write one of them."""

    SEALED: ClassVar[Sequence[str]]

    # Null: with a default, SQLite would make the table anew, without its triggers.
    seal = models.CharField(max_length=80, null=True, editable=False)  # noqa: DJ001 — as said

    class Meta:
        abstract = True

    @classmethod
    def giving(cls) -> QuerySet[Self]:
        """The rows that need a seal, whatever their state: all whose seal is asked for, now or after a change of state.

        The others ended for good or give nothing; ask `is_sealed`, `fits` or `sealed` of none of them.
        """
        return cls.rows()

    @classmethod
    def rows(cls) -> QuerySet[Self]:
        return cls._default_manager.all()

    @classmethod
    def table(cls) -> str:
        return cls._meta.db_table

    def set_seal(self) -> None:
        """Seal what the row says now; the caller has made sure of it, and saves `seal` with it."""
        salt = secrets.token_bytes(_SALT_BYTES)
        self.seal = b64u_encode(salt + _mac(settings.SECRET_KEY, salt, _said(self)))

    def is_sealed(self) -> bool:
        """Whether a service of ours wrote what the row says, and nothing ended it. One query; raises django.db errors."""
        if not DEMAND.holds():
            return True
        return self.fits() and not EndedSeal.objects.filter(seal=str(self.seal)).exists()

    def fits(self, *, key: str | None = None) -> bool:
        """Whether the seal, whether or not it ended, is over what the row says: by `key`, or by any key of ours.

        True while `seal_rows` is outstanding and no key is named.
        """
        if key is None and not DEMAND.holds():
            return True
        try:
            sealed, said = b64u_decode(self.seal or ""), _said(self)
        except EncodingError:
            # What no service writes.
            sealed, said = b"", b""
        salt, mac = sealed[:_SALT_BYTES], sealed[_SALT_BYTES:]
        keys = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS) if key is None else (key,)
        if sealed and any(hmac.compare_digest(mac, _mac(each, salt, said)) for each in keys):
            return True
        if key is None:
            _tell(self.table(), str(self.pk), self.seal)
        return False


_S = TypeVar("_S", bound=Sealed)


def sealed(rows: QuerySet[_S]) -> list[_S]:
    """Those of the rows whose seal is good: one query, as without. Raises django.db errors."""
    ended = EndedSeal.objects.filter(seal=OuterRef("seal"))
    return [row for row in rows.filter(~Exists(ended)) if row.fits()]


class _Demand:
    """Whether rows without a seal give nothing. Once they do, they do for good: the serving role cannot add the row."""

    def __init__(self) -> None:
        self._holds = False

    def holds(self) -> bool:
        self._holds = self._holds or not SealsPending.objects.exists()
        return self._holds


DEMAND: Final = _Demand()


def _said(row: Sealed) -> bytes:
    """The table and the fields that give the right, as bytes. Raises EncodingError for values that no service writes."""
    fields = {name: _plain(getattr(row, name)) for name in row.SEALED}
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
    # Once for each such row and process, not at each try.
    logger.error(
        "Refusing row %s of %s: no service wrote what it says. Run `%s verify_audit`.",
        pk,
        table,
        settings.COMMAND,
    )
