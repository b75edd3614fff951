"""The settings that all processes must share, recorded once and changed by one command."""

from django.db import models

from registry.release_compatibility import RELEASE


class Installation(models.Model):
    """The one row that each process compares itself with (registry.services.settings_agreement)."""

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)
    # {"PUBLIC_URL": "https://…", "SECRET_KEY": ["<id>"], …}: values, or ids of secrets.
    fingerprint = models.JSONField(default=dict)
    recorded_at = models.DateTimeField()
    # The release of the tables. A default of the database, so that only `migrate` sets it.
    release = models.PositiveIntegerField(db_default=RELEASE)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="installation_only_one")
        ]

    def __str__(self) -> str:
        return f"recorded {self.recorded_at}"
