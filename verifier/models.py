"""What decisions leave behind: counters, remembered operations, confirmations of single transactions, presence."""

from collections.abc import Sequence
from datetime import datetime

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import models
from django.db.models import F, Q

from agentauth.protocol.envelope import Ledger
from audit.identifiers import new_id
from registry.models import Grant, Human


class GrantLedger(models.Model):
    """What one grant has used, through all its versions. Budgets of a period count what the agent's other grants at the
    service provider have used as well (`verifier.stores.work`).
    """

    grant = models.OneToOneField(Grant, on_delete=models.PROTECT, primary_key=True, related_name="+")
    # The rate's theoretical arrival time in µs since 1970; null before the first use.
    tat_us = models.BigIntegerField(null=True)
    uses = models.BigIntegerField(default=0)
    # {"EUR/day/Europe/Berlin": [start of the period counted, minor units spent in it]}. Named by currency, period
    # and zone alone, so that a ceiling that changed keeps what was already spent under it. "EUR/day-before/…" is the
    # period counted before that one.
    spent = models.JSONField(default=dict)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(uses__gte=0), name="grant_ledger_uses_not_negative")
        ]

    def __str__(self) -> str:
        return f"{self.grant_id}: {self.uses} uses"

    def counters(self, beside: Sequence["GrantLedger"] = ()) -> Ledger:
        """The row as the protocol's value, counted together with those `beside` it."""
        return Ledger(
            tat_us=self.tat_us,
            uses=self.uses,
            spent=self.spent_by_budget(),
            beside=tuple(spent for row in beside if (spent := row.spent_by_budget())),
        )

    def spent_by_budget(self) -> dict[str, tuple[str, int]]:
        return {key: (str(start), int(minor)) for key, (start, minor) in self.spent.items()}


class AgentOperation(models.Model):
    """One allowed operation under the agent's idempotency key, written with its debit: what makes a retry free."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    # Without an index of its own: it would be asked instead of the one below, and a grant may have a million operations.
    grant = models.ForeignKey(Grant, on_delete=models.PROTECT, related_name="+", db_index=False)
    key = models.CharField(max_length=128)
    # SHA-256 of the canonical action: the same key never stands for two acts.
    action_digest = models.BinaryField(max_length=32)
    # The answer as it was given.
    answer = models.JSONField()
    created_at = models.DateTimeField()
    # Null: as long as the grant (a transact must never be done twice).
    expires_at = models.DateTimeField(null=True, db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["grant", "key"], name="agent_operation_once")]

    def __str__(self) -> str:
        return f"{self.grant_id} {self.created_at}"


class ProviderCall(models.Model):
    """The answer to one call of a service provider, for when it asks again because the first answer was lost."""

    # SHA-256 over the provider's id and its key: what it minted is kept nowhere.
    digest = models.BinaryField(max_length=32, primary_key=True)
    body_sha256 = models.BinaryField(max_length=32)
    # The body as text, so that it comes back with its members as they were. Empty only before the commit.
    answer = models.TextField()
    expires_at = models.DateTimeField(db_index=True)


class ConfirmationQuerySet(models.QuerySet["Confirmation"]):
    def waiting(self, now: datetime) -> "ConfirmationQuerySet":
        """Pending and not past their hour."""
        return self.filter(status=Confirmation.Status.PENDING, expires_at__gt=now)

    def lapsed(self, now: datetime) -> "ConfirmationQuerySet":
        """Ended by time alone, while their row still says pending or confirmed."""
        ended = Q(status=Confirmation.Status.PENDING, expires_at__lte=now)
        return self.filter(ended | Q(status=Confirmation.Status.CONFIRMED, usable_until__lte=now))


class Confirmation(models.Model):
    """A human's yes or no to one transaction: this action under this key of this version of the grant."""

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
    # Who decided; null until decided.
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    decided_at = models.DateTimeField(null=True)
    # A yes is good for ten minutes only.
    usable_until = models.DateTimeField(null=True)
    consumed_at = models.DateTimeField(null=True)

    objects = ConfirmationQuerySet.as_manager()

    class Meta:
        constraints = [
            # One question at a time, and no second question after an answer.
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
        """The state as it is at `now`: time ends a pending or confirmed one before any job records it."""
        end = {self.Status.PENDING: self.expires_at, self.Status.CONFIRMED: self.usable_until}.get(
            self.Status(self.status)
        )
        return self.status if end is None or end > now else self.Status.EXPIRED


class PresenceLeaseQuerySet(models.QuerySet["PresenceLease"]):
    def current(self, now: datetime) -> "PresenceLeaseQuerySet":
        """Renewed within a minute, in a session that has not ended in any of the ways a session ends."""
        return self.filter(
            expires_at__gt=now, session__expire_date__gt=now, session_epoch=F("human__session_epoch")
        )


class PresenceLease(models.Model):
    """The human says "I'm here" and looks on, until `expires_at` and never longer than the session it was begun in."""

    human = models.OneToOneField(Human, on_delete=models.CASCADE, primary_key=True, related_name="+")
    # Signing out deletes the session's row, and the lease goes with it.
    session = models.ForeignKey(Session, on_delete=models.CASCADE, related_name="+")
    # Raising the human's epoch ends every session at once, and so every lease.
    session_epoch = models.PositiveIntegerField()
    began_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    objects = PresenceLeaseQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.human_id} until {self.expires_at}"


class StateChange(models.Model):
    """One thing that verification rests on and that changed: committed with the change itself, told to whoever asks."""

    id = models.BigAutoField(primary_key=True)
    # The number of the transaction that made the change; see verifier/services/state.py.
    position = models.BigIntegerField(db_index=True)
    subject = models.CharField(max_length=16)
    subject_id = models.CharField(max_length=64)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.position}: {self.subject} {self.subject_id}"


class Home(models.Model):
    """The replay cache and its epoch: the one row every process reads (verifier/services/home.py)."""

    ONLY = 1

    class Kind(models.TextChoices):
        DATABASE = "database"
        REDIS = "redis"

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)
    # What is remembered under one number was remembered in one place without a gap. Counted up, never down.
    epoch = models.PositiveBigIntegerField(default=1)
    kind = models.CharField(max_length=16, choices=Kind, default=Kind.DATABASE)
    # Since when, by the database's clock.
    began_at = models.DateTimeField()
    # Who the Redis servers are that this epoch began with (verifier/stores/node.py, `identity`): another may have forgotten something.
    servers = models.JSONField(default=list)
    # Set while the epoch ends: nobody decides, and the next begins when every lease has run out.
    leaving_at = models.DateTimeField(null=True)
    leaving_for = models.CharField(max_length=16, choices=Kind, blank=True)
    # Release 3 writes it. To be dropped by release 5.
    back_after = models.PositiveSmallIntegerField(default=0)
    # The start of the database for which its history was compared with what is known outside (verifier/services/history.py).
    vouched_for = models.CharField(max_length=128, blank=True, db_default="", default="")
    # Since when nothing is decided because this database is older than that, and what was found; null and empty: it is not.
    held_at = models.DateTimeField(null=True)
    held_because = models.TextField(blank=True, db_default="", default="")
    # The log's name since the last restore (audit/breaks.py): a process that knows another forgets all it holds.
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
        """The cache of the epoch that goes on, or is about to begin."""
        return self.leaving_for or self.kind


class StreamCursor(models.Model):
    """How far the events of one shard of Redis are written down: moved in the transaction that writes them."""

    epoch = models.PositiveBigIntegerField()
    shard = models.PositiveSmallIntegerField()
    # The number of the last event taken over; they are counted 1, 2, 3 in each shard of each epoch.
    number = models.PositiveBigIntegerField(default=0)
    # The number up to which verifiers were told of events; what is missing below it once the epoch is over, is lost.
    told = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["epoch", "shard"], name="stream_cursor_one")]

    def __str__(self) -> str:
        return f"{self.epoch}/{self.shard}: {self.number}"
