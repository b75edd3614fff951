"""The verifier's tables: counters, remembered operations, confirmations, presence, replay cache."""

from collections.abc import Sequence
from datetime import datetime

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import models
from django.db.models import F, Q

from agentauth.protocol.behavioural_envelope import Ledger
from audit.new_ids import new_id
from registry.models import Grant, Human


class GrantLedger(models.Model):
    """What one grant has used, across all its versions.

    Budgets of a period also count what the agent's other grants at the service provider have used
    (`verifier.stores.transaction_batch`).
    """

    grant = models.OneToOneField(
        Grant, on_delete=models.PROTECT, primary_key=True, related_name="+"
    )
    # The rate's theoretical arrival time in µs since 1970; null before the first use.
    tat_us = models.BigIntegerField(null=True)
    uses = models.BigIntegerField(default=0)
    # {"EUR/day/Europe/Berlin": [start of the counted period, minor units spent in it]}. The key has
    # only currency, period and zone, so that a changed ceiling keeps what was already spent.
    # "EUR/day-before/…" is the period before that one.
    spent = models.JSONField(default=dict)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(uses__gte=0), name="grant_ledger_uses_not_negative")
        ]

    def __str__(self) -> str:
        return f"{self.grant_id}: {self.uses} uses"

    def counters(self, beside: Sequence["GrantLedger"] = ()) -> Ledger:
        """The row as a protocol value, counted together with the ledgers `beside` it."""
        return Ledger(
            tat_us=self.tat_us,
            uses=self.uses,
            spent=self.spent_by_budget(),
            beside=tuple(spent for row in beside if (spent := row.spent_by_budget())),
        )

    def spent_by_budget(self) -> dict[str, tuple[str, int]]:
        return {key: (str(start), int(minor)) for key, (start, minor) in self.spent.items()}


class AgentOperation(models.Model):
    """An allowed operation of the agent, stored with its debit so that a retry costs nothing."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    # No index of its own: the planner would prefer it to the one below, and a grant may
    # have a million operations.
    grant = models.ForeignKey(Grant, on_delete=models.PROTECT, related_name="+", db_index=False)
    key = models.CharField(max_length=128)
    # SHA-256 of the canonical action, so that one key never stands for two actions.
    action_digest = models.BinaryField(max_length=32)
    # The answer as it was given.
    answer = models.JSONField()
    created_at = models.DateTimeField()
    # Null: kept as long as the grant, since a transact must never be done twice.
    expires_at = models.DateTimeField(null=True, db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["grant", "key"], name="agent_operation_once")
        ]

    def __str__(self) -> str:
        return f"{self.grant_id} {self.created_at}"


class ProviderCall(models.Model):
    """The answer to a service provider's call, kept in case it is lost and the provider retries."""

    # SHA-256 over the provider's id and its key, which itself is not stored.
    digest = models.BinaryField(max_length=32, primary_key=True)
    body_sha256 = models.BinaryField(max_length=32)
    # Stored as text to keep the order of its members. Empty only before the commit.
    answer = models.TextField()
    expires_at = models.DateTimeField(db_index=True)


class ConfirmationQuerySet(models.QuerySet["Confirmation"]):
    def waiting(self, now: datetime) -> "ConfirmationQuerySet":
        """Pending and not expired."""
        return self.filter(status=Confirmation.Status.PENDING, expires_at__gt=now)

    def lapsed(self, now: datetime) -> "ConfirmationQuerySet":
        """Expired, while their row still says pending or confirmed."""
        ended = Q(status=Confirmation.Status.PENDING, expires_at__lte=now)
        return self.filter(ended | Q(status=Confirmation.Status.CONFIRMED, usable_until__lte=now))


class Confirmation(models.Model):
    """A human's yes or no to one transaction: an action under a key and a version of the grant."""

    class Status(models.TextChoices):
        PENDING = "pending"
        CONFIRMED = "confirmed"
        DENIED = "denied"
        EXPIRED = "expired"
        CONSUMED = "consumed"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    grant = models.ForeignKey(Grant, on_delete=models.PROTECT, related_name="+")
    grant_version = models.PositiveIntegerField()
    action = models.JSONField()
    action_digest = models.BinaryField(max_length=32)
    idempotency_key = models.CharField(max_length=128)
    status = models.CharField(max_length=16, choices=Status, default=Status.PENDING)
    # The human who decided; null until then.
    human = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+"
    )
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    decided_at = models.DateTimeField(null=True)
    # A yes is valid for ten minutes.
    usable_until = models.DateTimeField(null=True)
    consumed_at = models.DateTimeField(null=True)

    objects = ConfirmationQuerySet.as_manager()

    class Meta:
        constraints = [
            # Only one open request at a time, and none after an answer.
            models.UniqueConstraint(
                fields=["grant", "grant_version", "action_digest", "idempotency_key"],
                condition=~Q(status="expired"),
                name="confirmation_asked_once",
            ),
            models.CheckConstraint(
                condition=Q(status__in=["pending", "confirmed", "denied", "expired", "consumed"]),
                name="confirmation_status",
            ),
            models.CheckConstraint(
                condition=~Q(status__in=["confirmed", "consumed"])
                | Q(human__isnull=False, decided_at__isnull=False, usable_until__isnull=False),
                name="confirmation_yes_is_whole",
            ),
            models.CheckConstraint(
                condition=~Q(status="denied") | Q(human__isnull=False, decided_at__isnull=False),
                name="confirmation_no_is_whole",
            ),
            models.CheckConstraint(
                condition=Q(status="consumed", consumed_at__isnull=False)
                | (~Q(status="consumed") & Q(consumed_at__isnull=True)),
                name="confirmation_consumed_is_dated",
            ),
        ]
        indexes = [
            models.Index(fields=["grant", "idempotency_key"], name="confirmation_grant_key"),
            models.Index(fields=["status", "expires_at"], name="confirmation_status_expires"),
        ]

    def __str__(self) -> str:
        return f"{self.status} for {self.grant_id}"

    def status_at(self, now: datetime) -> str:
        """The status at `now`: a pending or confirmed one expires before a job records it."""
        end = {self.Status.PENDING: self.expires_at, self.Status.CONFIRMED: self.usable_until}.get(
            self.Status(self.status)
        )
        return self.status if end is None or end > now else self.Status.EXPIRED


class PresenceLeaseQuerySet(models.QuerySet["PresenceLease"]):
    def current(self, now: datetime) -> "PresenceLeaseQuerySet":
        """Renewed within a minute, in a session that has not expired or been ended."""
        return self.filter(
            expires_at__gt=now,
            session__expire_date__gt=now,
            session_epoch=F("human__session_epoch"),
        )


class PresenceLease(models.Model):
    """A human is present until `expires_at`, but no longer than the session it was begun in."""

    human = models.OneToOneField(
        Human, on_delete=models.CASCADE, primary_key=True, related_name="+"
    )
    # Signing out deletes the session's row and, by the cascade, the lease.
    session = models.ForeignKey(Session, on_delete=models.CASCADE, related_name="+")
    # Raising the human's epoch ends all sessions and leases at once.
    session_epoch = models.PositiveIntegerField()
    began_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    objects = PresenceLeaseQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.human_id} until {self.expires_at}"


class StateChange(models.Model):
    """A change of state that verification rests on, committed together with the change itself."""

    id = models.BigAutoField(primary_key=True)
    # The number of the transaction that made the change; see
    # verifier/services/state_change_feed.py.
    position = models.BigIntegerField(db_index=True)
    subject = models.CharField(max_length=16)
    subject_id = models.CharField(max_length=64)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.position}: {self.subject} {self.subject_id}"


class Home(models.Model):
    """The one row of the replay cache, with its epoch; all processes read it (replay_epochs.py)."""

    ONLY = 1

    class Kind(models.TextChoices):
        DATABASE = "database"
        REDIS = "redis"

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)
    # One number stands for one cache without a gap. It only ever grows.
    epoch = models.PositiveBigIntegerField(default=1)
    kind = models.CharField(max_length=16, choices=Kind, default=Kind.DATABASE)
    # When the epoch began, by the database's clock or that of the host that began
    # it, whichever was later.
    began_at = models.DateTimeField()
    # Identities of the Redis servers when the epoch began (verifier/stores/redis_client.py,
    # `identity`). A server with another identity may have lost something.
    servers = models.JSONField(default=list)
    # Set while the epoch ends: nothing is decided, and the next begins once
    # every lease has expired.
    leaving_at = models.DateTimeField(null=True)
    leaving_for = models.CharField(max_length=16, choices=Kind, blank=True)
    # Written by release 3. Release 5 drops it.
    back_after = models.PositiveSmallIntegerField(default=0)
    # The start of the database whose history was compared
    # (verifier/services/rollback_hold.py).
    vouched_for = models.CharField(max_length=128, blank=True, db_default="", default="")
    # Since when the database is held, because it was set back or closed, and why. Null
    # and empty: not held.
    held_at = models.DateTimeField(null=True)
    held_because = models.TextField(blank=True, db_default="", default="")
    # The log's name since the last restore (audit/checkpoints/log_breaks.py). A change
    # invalidates every process's cache.
    history = models.CharField(max_length=14, blank=True, db_default="", default="")

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(id=1), name="home_only_one"),
            models.CheckConstraint(condition=Q(kind__in=["database", "redis"]), name="home_kind"),
            models.CheckConstraint(
                condition=Q(leaving_at__isnull=True, leaving_for="")
                | Q(leaving_at__isnull=False, leaving_for__in=["database", "redis"]),
                name="home_leaves_for_somewhere",
            ),
        ]

    def __str__(self) -> str:
        return f"epoch {self.epoch}: {self.kind}"

    @property
    def target(self) -> str:
        """The cache of the current epoch or, while it ends, of the next one."""
        return self.leaving_for or self.kind


class StreamCursor(models.Model):
    """How far the outbox has moved a Redis shard's events into the log, in the same transaction."""

    epoch = models.PositiveBigIntegerField()
    shard = models.PositiveSmallIntegerField()
    # The last event in the log. Events are numbered 1, 2, 3 in each shard of each epoch.
    number = models.PositiveBigIntegerField(default=0)
    # The last event that a verifier acknowledged. Once the epoch is over, any missing up
    # to it are lost.
    told = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["epoch", "shard"], name="stream_cursor_one")]

    def __str__(self) -> str:
        return f"{self.epoch}/{self.shard}: {self.number}"
