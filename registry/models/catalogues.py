"""The versions of each service provider's catalogue."""

from typing import Self

from django.db import models

from audit.new_ids import new_id
from kms.row_seals import Sealed
from registry.models.service_providers import ServiceProvider


class CatalogueVersion(Sealed):
    """One version, as its service provider proposed it; only an approved one has a seal.

    It gives no permission, but people read its words when they sign.
    """

    SEALED = ("id", "service_provider_id", "version", "document")

    class Status(models.TextChoices):
        PROPOSED = "proposed"
        APPROVED = "approved"
        REFUSED = "refused"
        # The service provider proposed another version before an administrator decided.
        WITHDRAWN = "withdrawn"
        # It was approved until a later version replaced it.
        REPLACED = "replaced"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    service_provider = models.ForeignKey(
        ServiceProvider, on_delete=models.PROTECT, related_name="+"
    )
    version = models.PositiveIntegerField()
    # The catalogue as canonical JSON (docs/protocol.md section 3).
    document = models.TextField()
    status = models.CharField(max_length=16, choices=Status, default=Status.PROPOSED)
    proposed_at = models.DateTimeField()
    decided_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["service_provider", "version"], name="catalogue_version_once"
            ),
            models.UniqueConstraint(
                fields=["service_provider"],
                condition=models.Q(status="approved"),
                name="catalogue_one_approved",
            ),
            models.UniqueConstraint(
                fields=["service_provider"],
                condition=models.Q(status="proposed"),
                name="catalogue_one_proposed",
            ),
            models.CheckConstraint(
                condition=models.Q(status="proposed", decided_at=None)
                | models.Q(
                    status__in=["approved", "refused", "withdrawn", "replaced"],
                    decided_at__isnull=False,
                ),
                name="catalogue_status",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.service_provider_id} {self.version}"

    @classmethod
    def giving(cls) -> models.QuerySet[Self]:
        return super().giving().filter(status=cls.Status.APPROVED)
