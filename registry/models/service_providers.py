"""Service providers: the owners of APIs, who call the verifier."""

from typing import Self

from django.db import models

from audit.new_ids import new_id
from kms.row_seals import Sealed


class ServiceProvider(Sealed):
    SEALED = ("id", "name", "audience", "allowed", "is_auditor")

    class Status(models.TextChoices):
        ACTIVE = "active"
        SUSPENDED = "suspended"
        REVOKED = "revoked"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    slug = models.SlugField(max_length=80, unique=True)
    name = models.CharField(max_length=80)
    # Absolute URL without final slash; services keep audiences disjoint.
    audience = models.CharField(max_length=255, unique=True)
    # Allow-list entries such as "read:calendar"; empty allows nothing.
    allowed = models.JSONField(default=list)
    is_auditor = models.BooleanField(default=False)
    # Proofs sent to it, and those that ask for tokens of its grants, must carry a server nonce.
    require_nonce = models.BooleanField(default=False)
    status = models.CharField(max_length=16, choices=Status, default=Status.ACTIVE)
    # How often it was suspended (null: 0). A signed resume names this number, so that it cannot
    # lift a later suspension.
    suspensions = models.PositiveIntegerField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status__in=["active", "suspended", "revoked"]),
                name="service_provider_status",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_active(self) -> bool:
        return self.status == self.Status.ACTIVE

    @classmethod
    def giving(cls) -> models.QuerySet[Self]:
        return super().giving().exclude(status=cls.Status.REVOKED)

    @property
    def may_audit(self) -> bool:
        """Whether it may read the whole log. One query for an auditor."""
        return self.is_auditor and self.is_active and self.is_sealed()

    # DRF reads this on `request.user`.
    is_authenticated = True

    def audit_filter(self) -> dict[str, str] | None:
        """The filter for the events it may read: everything for an auditor, else nothing."""
        return {} if self.may_audit else None


class ServiceProviderSecret(Sealed):
    """The digest of a secret. Two may overlap for a rotation without a pause.

    A secret that ended has no seal.
    """

    SEALED = ("service_provider_id", "digest")

    service_provider = models.ForeignKey(
        ServiceProvider, on_delete=models.PROTECT, related_name="secrets"
    )
    digest = models.BinaryField(max_length=32, unique=True)
    created_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)

    @classmethod
    def giving(cls) -> models.QuerySet[Self]:
        return super().giving().filter(revoked_at=None)
