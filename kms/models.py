"""Records of our own keys. The keys themselves live where `uri` says; no private part is ever in the database."""

from typing import Self

from django.db import models

from audit.identifiers import new_id
from kms.seals import EndedSeal, Sealed, SealsPending

__all__ = ["EndedSeal", "Key", "KeyCertificate", "SealsPending"]


class Key(Sealed):
    """One signing key and its life: next, active, retired; disabled from anywhere, for good.

    What a key may do at a moment is decided by comparing its times with that moment (`kms.lifetimes`); `state`
    is what a job recorded last. A disabled key has no seal: set back to another state, it gives nothing.
    """

    SEALED = ("kid", "purpose", "uri", "algorithm", "public_jwk")

    class Purpose(models.TextChoices):
        TOKEN = "token"  # noqa: S105 — a purpose, no secret
        AUDIT = "audit"
        RECEIPT = "receipt"

    class State(models.TextChoices):
        NEXT = "next"
        ACTIVE = "active"
        RETIRED = "retired"
        DISABLED = "disabled"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    kid = models.CharField(max_length=64, unique=True)
    purpose = models.CharField(max_length=16, choices=Purpose)
    state = models.CharField(max_length=16, choices=State)
    uri = models.CharField(max_length=512)
    algorithm = models.CharField(max_length=16)
    public_jwk = models.JSONField()
    published_at = models.DateTimeField()
    # Signs from this moment on, whether or not a job has recorded it yet.
    active_from = models.DateTimeField()
    retired_at = models.DateTimeField(null=True)
    # The end of what it signed: until then a retired key still verifies. Null: for ever.
    needed_until = models.DateTimeField(null=True)
    # By which the key before introduces this one (agentauth/protocol/introduction.py); empty for a purpose's first.
    introduction = models.TextField(blank=True, db_default="", default="")
    disabled_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(purpose__in=["token", "audit", "receipt"]), name="key_purpose"
            ),
            models.CheckConstraint(
                condition=models.Q(state__in=["next", "active", "retired", "disabled"]), name="key_state"
            ),
            models.UniqueConstraint(
                fields=["purpose"], condition=models.Q(state="active"), name="key_one_active_per_purpose"
            ),
            models.UniqueConstraint(
                fields=["purpose"], condition=models.Q(state="next"), name="key_one_next_per_purpose"
            ),
            models.CheckConstraint(
                condition=~models.Q(state="retired") | models.Q(retired_at__isnull=False),
                name="key_retired_has_its_time",
            ),
            models.CheckConstraint(
                condition=models.Q(state="disabled", disabled_at__isnull=False)
                | (~models.Q(state="disabled") & models.Q(disabled_at__isnull=True)),
                name="key_disabled_has_its_time",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.purpose} {self.kid}"

    @classmethod
    def giving(cls) -> models.QuerySet[Self]:
        return super().giving().exclude(state=cls.State.DISABLED)


class KeyCertificate(models.Model):
    """A token key's word for a key that lives in one process (docs/protocol.md section 4); the private half is only there.

    Its times are those of the signed text, but for `usable_from`: until then the key set may not be everywhere.
    """

    class State(models.TextChoices):
        CERTIFIED = "certified"
        REVOKED = "revoked"

    serial = models.UUIDField(primary_key=True, default=new_id, editable=False)
    kid = models.CharField(max_length=64, unique=True)
    issuer = models.ForeignKey(Key, on_delete=models.PROTECT, related_name="certificates")
    state = models.CharField(max_length=16, choices=State)
    # The process, as host:number.
    instance = models.CharField(max_length=128)
    jws = models.TextField()
    not_before = models.DateTimeField()
    not_after = models.DateTimeField(db_index=True)
    usable_from = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(state="certified", revoked_at__isnull=True)
                | models.Q(state="revoked", revoked_at__isnull=False),
                name="certificate_revoked_has_its_time",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.instance} {self.serial}"
