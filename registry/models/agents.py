"""Agents: programs that hold a key and act for a human."""

from datetime import datetime

from django.conf import settings
from django.db import models

from audit.new_ids import new_id
from kms.row_seals import Sealed


class Agent(Sealed):
    SEALED = ("id", "jkt", "human_id")
    # Release 4 does not seal the owner.
    SEALED_BY_PREVIOUS_RELEASE = ("id", "jkt")

    class Status(models.TextChoices):
        UNCLAIMED = "unclaimed"
        ACTIVE = "active"
        SUSPENDED = "suspended"
        REVOKED = "revoked"
        EXPIRED = "expired"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    status = models.CharField(max_length=16, choices=Status)
    # While suspended: whether an admin or the owner did it, or both. Each lifts only their own
    # suspension. Release 1 does not write the second column (null, or its former value): a
    # suspension that is not an admin's is the owner's.
    suspended_by_admin = models.BooleanField(default=False)
    suspended_by_owner = models.BooleanField(null=True)
    # How often it was suspended (null: 0). A signed resume names this number, so that it cannot
    # lift a later suspension.
    suspensions = models.PositiveIntegerField(null=True)
    human = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="agents"
    )
    # RFC 7638 thumbprint of the agent's one key. Unique: no second agent can have the same key.
    jkt = models.CharField(max_length=43, unique=True)
    public_jwk = models.JSONField()
    name = models.CharField(max_length=80)
    description = models.CharField(max_length=500, blank=True)
    model_origin = models.CharField(max_length=255, blank=True)
    # The signed manifest as received, its SHA-256 (hex), and the most the agent may ever ask for.
    manifest = models.TextField()
    manifest_sha256 = models.CharField(max_length=64)
    capabilities = models.JSONField()
    expires_at = models.DateTimeField()
    # A claim's secret and code are derived from (id, claim_number); a new number ends the old link.
    claim_number = models.PositiveIntegerField(default=1)
    claim_expires_at = models.DateTimeField(null=True)
    claim_failures = models.PositiveSmallIntegerField(default=0)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(
                    status__in=["unclaimed", "active", "suspended", "revoked", "expired"]
                ),
                name="agent_status",
            ),
            models.CheckConstraint(
                condition=models.Q(status__in=["active", "suspended"], human__isnull=False)
                | models.Q(status="unclaimed", human__isnull=True)
                | models.Q(status__in=["revoked", "expired"]),
                name="agent_owned_unless_unclaimed",
            ),
        ]
        indexes = [models.Index(fields=["status", "expires_at"], name="agent_status_expires")]

    def __str__(self) -> str:
        return self.name

    def status_at(self, now: datetime) -> str:
        """The state at `now`. The manifest's end counts at once, not when a job records it."""
        if self.status in {self.Status.UNCLAIMED, self.Status.ACTIVE} and self.expires_at <= now:
            return self.Status.EXPIRED
        return self.status

    @property
    def admin_holds(self) -> bool:
        """Suspended by an admin, whether or not the owner also did."""
        return self.status == self.Status.SUSPENDED and self.suspended_by_admin

    @property
    def owner_holds(self) -> bool:
        """Suspended by its owner, whether or not an admin also did."""
        theirs = bool(self.suspended_by_owner) or not self.suspended_by_admin
        return self.status == self.Status.SUSPENDED and theirs

    def is_active_at(self, now: datetime) -> bool:
        return self.status_at(now) == self.Status.ACTIVE

    # DRF reads this on `request.user`.
    is_authenticated = True

    def audit_filter(self) -> dict[str, str] | None:
        """The filter for the events that the agent may read: its own."""
        return {"agent_id": str(self.id)}


class BarredKey(models.Model):
    """A key that may never be used again: rotated out, or its private half was sent to us."""

    jkt = models.CharField(max_length=43, primary_key=True)
    reason = models.CharField(max_length=32)
    barred_at = models.DateTimeField()


class EnrolmentCode(models.Model):
    """A one-time code that lets an agent register as a human's own.

    `lookup` finds the row. Of the secret, only the digest is kept.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    lookup = models.CharField(max_length=8, unique=True)
    digest = models.BinaryField(max_length=32)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    failures = models.PositiveSmallIntegerField(default=0)
    used_at = models.DateTimeField(null=True)
    agent = models.OneToOneField(Agent, on_delete=models.SET_NULL, null=True, related_name="+")
