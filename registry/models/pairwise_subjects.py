"""Which version of the subject key makes a human's `sub` at a service provider."""

from django.db import models

from registry.models.humans import Human
from registry.models.service_providers import ServiceProvider


class PairwiseSubject(models.Model):
    """Written before the first token of a human at a service provider, and never changed.

    With another `sub`, the service provider would see another person.
    """

    human = models.ForeignKey(Human, on_delete=models.PROTECT, related_name="+")
    service_provider = models.ForeignKey(
        ServiceProvider, on_delete=models.PROTECT, related_name="+"
    )
    key_version = models.CharField(max_length=16)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["human", "service_provider"], name="pairwise_subject_once"
            )
        ]
        # To find out whether a version is still needed.
        indexes = [models.Index(fields=["key_version"], name="pairwise_subject_version")]

    def __str__(self) -> str:
        return f"{self.human_id} at {self.service_provider_id}: {self.key_version}"
