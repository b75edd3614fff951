"""Grants: capabilities and envelope of one agent at one service provider, asked and approved."""

from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.db import models

from audit.new_ids import new_id
from registry.models.agents import Agent
from registry.models.service_providers import ServiceProvider

# A request of an agent, or of an owner who wants a grant renewed, waits this long for a decision.
PENDING_LIFE: Final = timedelta(hours=1)


class GrantQuerySet(models.QuerySet["Grant"]):
    def live(self, now: datetime) -> "GrantQuerySet":
        """Approved and not past its end: a token may be issued."""
        return self.filter(status=Grant.Status.APPROVED, valid_until__gt=now)

    def waiting(self, now: datetime) -> "GrantQuerySet":
        """Pending and within its hour."""
        return self.filter(status=Grant.Status.PENDING, expires_at__gt=now)

    def to_sign_again(self, now: datetime) -> "GrantQuerySet":
        """As `Grant.waits_for_signature`, without grants of revoked agents: no signature helps."""
        return (
            self.filter(
                status=Grant.Status.SUSPENDED, suspended_by_admin=False, valid_until__gt=now
            )
            .exclude(suspension_cause=Grant.SuspensionCause.PERSON)
            .exclude(agent__status=Agent.Status.REVOKED)
        )

    def to_renew(self, now: datetime) -> "GrantQuerySet":
        """As `Grant.waits_for_renewal`, without grants of revoked agents."""
        return self.filter(
            status=Grant.Status.APPROVED,
            valid_until__gt=now,
            renewal__asked_at__gt=now - PENDING_LIFE,
        ).exclude(agent__status=Agent.Status.REVOKED)


class Grant(models.Model):
    class Status(models.TextChoices):
        PENDING = "pending"
        APPROVED = "approved"
        DENIED = "denied"
        WITHDRAWN = "withdrawn"
        SUSPENDED = "suspended"
        REVOKED = "revoked"
        EXPIRED = "expired"

    class SuspensionCause(models.TextChoices):
        # A human or admin may resume these.
        PERSON = "person"
        # All others need a new signed approval; RESTORED may also be released by an administrator.
        KEY_ROTATED = "key_rotated"
        MANIFEST_CHANGED = "manifest_changed"
        AUDIENCE_CHANGED = "audience_changed"
        ALLOWED_CHANGED = "allowed_changed"
        RECOVERY = "recovery"
        # The database was restored: what this grant had spent, or its revocation, may be lost.
        RESTORED = "restored"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    agent = models.ForeignKey(Agent, on_delete=models.PROTECT, related_name="grants")
    service_provider = models.ForeignKey(
        ServiceProvider, on_delete=models.PROTECT, related_name="grants"
    )
    # The human who decided; null until decided.
    human = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+"
    )
    status = models.CharField(max_length=16, choices=Status, default=Status.PENDING)
    # Rises with every suspension and every change of the agent's key or manifest. A token of
    # another version is refused.
    version = models.PositiveIntegerField(default=1)
    requested_capabilities = models.JSONField()
    requested_envelope = models.JSONField()
    requested_seconds = models.PositiveIntegerField()
    # SHA-256 over service provider, capabilities, envelope and lifetime: finds the identical
    # pending request.
    request_digest = models.BinaryField(max_length=32)
    reason = models.CharField(max_length=500, blank=True)
    # As granted; null until approved. The requested terms stay until the human is deleted.
    capabilities = models.JSONField(null=True)
    envelope = models.JSONField(null=True)
    valid_until = models.DateTimeField(null=True)
    deny_reason = models.CharField(max_length=500, blank=True)
    suspension_cause = models.CharField(max_length=32, choices=SuspensionCause, blank=True)
    # While suspended: whether an admin did it. Then neither the owner's resume nor the owner's
    # signature undoes it. With cause `person` the owner may have done it too; columns as in Agent.
    suspended_by_admin = models.BooleanField(default=False)
    suspended_by_owner = models.BooleanField(null=True)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    decided_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    # Time of approval, if another grant of the agent at the service provider had just ended: this
    # grant then starts with its burst used up, because the other may just have used its own.
    follows_at = models.DateTimeField(null=True)
    # Polling of a pending request: time of the last poll, and the minimum interval in seconds.
    polled_at = models.DateTimeField(null=True)
    poll_interval = models.PositiveSmallIntegerField(default=2)

    objects = GrantQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["agent", "request_digest"],
                condition=models.Q(status="pending"),
                name="grant_one_identical_pending",
            ),
            models.CheckConstraint(
                condition=models.Q(
                    status__in=[
                        "pending",
                        "approved",
                        "denied",
                        "withdrawn",
                        "suspended",
                        "revoked",
                        "expired",
                    ]
                ),
                name="grant_status",
            ),
            models.CheckConstraint(
                condition=~models.Q(status__in=["approved", "suspended"])
                | models.Q(
                    human__isnull=False,
                    capabilities__isnull=False,
                    envelope__isnull=False,
                    valid_until__isnull=False,
                    decided_at__isnull=False,
                ),
                name="grant_approved_is_whole",
            ),
        ]
        indexes = [
            models.Index(fields=["agent", "status"], name="grant_agent_status"),
            models.Index(fields=["status", "expires_at"], name="grant_status_expires"),
            models.Index(fields=["status", "valid_until"], name="grant_status_valid_until"),
            # Requests within the last hour.
            models.Index(fields=["agent", "created_at"], name="grant_asked"),
            # Grants that were once approved: an agent may add a thousand requests a day.
            models.Index(
                fields=["agent", "service_provider"],
                condition=models.Q(capabilities__isnull=False),
                name="grant_given",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.agent_id} at {self.service_provider_id}"

    def status_at(self, now: datetime) -> str:
        """The state at `now`. An end counts from its second, not from when a job records it."""
        if self.status == self.Status.PENDING and self.expires_at <= now:
            return self.Status.EXPIRED
        if self.status in {self.Status.APPROVED, self.Status.SUSPENDED}:
            return (
                self.Status.EXPIRED
                if self.valid_until is None or self.valid_until <= now
                else self.status
            )
        return self.status

    @property
    def admin_holds(self) -> bool:
        """Suspended by an admin, whatever else suspends it."""
        return self.status == self.Status.SUSPENDED and self.suspended_by_admin

    @property
    def owner_holds(self) -> bool:
        """Suspended by its owner, whether or not an admin also did. Not if it needs a signature."""
        theirs = bool(self.suspended_by_owner) or not self.suspended_by_admin
        by_person = self.suspension_cause == self.SuspensionCause.PERSON
        return self.status == self.Status.SUSPENDED and by_person and theirs

    def waits_for_signature(self, now: datetime) -> bool:
        """Whether a new signed approval brings it back: suspended, but by no person or admin."""
        return (
            self.status_at(now) == self.Status.SUSPENDED
            and self.suspension_cause != self.SuspensionCause.PERSON
            and not self.suspended_by_admin
        )

    def waits_for_renewal(self, now: datetime) -> bool:
        """Whether it is approved and its owner asked, within the hour, that it end later."""
        if self.status_at(now) != self.Status.APPROVED:
            return False
        renewal = getattr(self, "renewal", None)
        return renewal is not None and renewal.asked_at > now - PENDING_LIFE

    def asked_at(self, now: datetime) -> datetime:
        """When the renewal that waits was asked for, or else the request was made."""
        return self.renewal.asked_at if self.waits_for_renewal(now) else self.created_at

    def open_until(self, now: datetime) -> datetime:
        """When the renewal that waits lapses, or else the request expires."""
        if self.waits_for_renewal(now):
            return self.renewal.asked_at + PENDING_LIFE
        return self.expires_at


class Renewal(models.Model):
    """An owner asks that an approved grant end later. Deleted when that is signed or has lapsed."""

    grant = models.OneToOneField(
        Grant, on_delete=models.CASCADE, primary_key=True, related_name="renewal"
    )
    asked_at = models.DateTimeField()

    def __str__(self) -> str:
        return str(self.grant_id)
