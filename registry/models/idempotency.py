"""Answers that are remembered under an Idempotency-Key."""

from django.db import models


class IdempotencyRecord(models.Model):
    """The answer to one (caller, route, key), written in the same transaction as the act."""

    caller = models.CharField(max_length=64)
    route = models.CharField(max_length=80)
    key = models.CharField(max_length=255)
    body_sha256 = models.BinaryField(max_length=32)
    status = models.PositiveSmallIntegerField(default=0)
    body = models.JSONField(default=dict)
    # Set if the answer was a token: a retry signs its stored claims again.
    token_jti = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["caller", "route", "key"], name="idempotency_one_answer"
            ),
        ]
