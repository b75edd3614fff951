"""Logos of service providers, as the registry re-encoded them."""

from django.db import models

from audit.new_ids import new_id
from kms.row_seals import Sealed
from registry.models.service_providers import ServiceProvider


class ServiceLogo(Sealed):
    """A logo that waits for an administrator's signature, or the approved one.

    A table of its own: every call of the verifier reads its service provider's row.
    """

    # The digest covers the picture, and is compared with it before it is served. A logo that waits
    # is sealed too: an administrator sees one frame, so the bytes must be the encoder's.
    SEALED = ("id", "service_provider_id", "sha256", "approved_at")

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    service_provider = models.ForeignKey(
        ServiceProvider, on_delete=models.PROTECT, related_name="+"
    )
    # A square PNG without metadata (registry/services/logo_encoding.py).
    image = models.BinaryField()
    # Of `image`, in hex.
    sha256 = models.CharField(max_length=64, db_index=True)
    proposed_at = models.DateTimeField()
    approved_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["service_provider"],
                condition=models.Q(approved_at=None),
                name="logo_one_proposed",
            ),
            models.UniqueConstraint(
                fields=["service_provider"],
                condition=models.Q(approved_at__isnull=False),
                name="logo_one_approved",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.service_provider_id} {self.sha256}"
