"""Records of our signing keys. The keys are where `uri` says; no private key is in the database."""

from typing import Self

from django.db import models

from audit.new_ids import new_id
from kms.row_seals import EndedSeal, Sealed, SealsPending, WiderSealsPending

__all__ = ["EndedSeal", "Key", "KeyCertificate", "SealsPending", "WiderSealsPending"]


class Key(Sealed):
    """One signing key: next, active, retired; or disabled, from any state and permanently.

    What a key may do is computed from its times (`kms.lifetimes`); `state` is what a job recorded
    last. A disabled key has no seal, so an attacker who resets its state gains nothing.
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
    # It signs from this moment on, even if no job has recorded the switch.
    active_from = models.DateTimeField()
    retired_at = models.DateTimeField(null=True)
    # A retired key verifies until then, when the last thing it signed expires. Null: forever.
    needed_until = models.DateTimeField(null=True)
    # The previous key's introduction of this one (agentauth/protocol/key_introduction.py); empty
    # for the first.
    introduction = models.TextField(blank=True, db_default="", default="")
    disabled_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(purpose__in=["token", "audit", "receipt"]), name="key_purpose"
            ),
            models.CheckConstraint(
                condition=models.Q(state__in=["next", "active", "retired", "disabled"]),
                name="key_state",
            ),
            models.UniqueConstraint(
                fields=["purpose"],
                condition=models.Q(state="active"),
                name="key_one_active_per_purpose",
            ),
            models.UniqueConstraint(
                fields=["purpose"],
                condition=models.Q(state="next"),
                name="key_one_next_per_purpose",
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
    """A token key's certificate for a key of one process (docs/protocol.md section 4).

    The private key is only in that process. The times are those of the signed text, except
    `usable_from`: until then the key set may not have reached every verifier.
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
