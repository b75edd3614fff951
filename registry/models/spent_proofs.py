"""Spent proofs, so that none is accepted twice."""

from django.db import models


class SpentProof(models.Model):
    """One (jkt, jti), kept until the proof can no longer be accepted."""

    # SHA-256(jkt ‖ 0x00 ‖ jti): a fixed size, whatever the client chose.
    digest = models.BinaryField(max_length=32, primary_key=True)
    expires_at = models.DateTimeField(db_index=True)
