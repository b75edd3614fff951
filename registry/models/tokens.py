"""Issued access tokens: their claims, never the token. A retry signs the claims again."""

from django.db import models

from audit.new_ids import new_id
from registry.models.grants import Grant


class Token(models.Model):
    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    jti = models.CharField(max_length=64, unique=True)
    grant = models.ForeignKey(Grant, on_delete=models.PROTECT, related_name="tokens")
    grant_version = models.PositiveIntegerField()
    jkt = models.CharField(max_length=43)
    claims = models.JSONField()
    issued_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [models.Index(fields=["expires_at"], name="token_expires")]

    def __str__(self) -> str:
        return self.jti
