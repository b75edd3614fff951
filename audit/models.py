"""Rows of the audit log. Events and leaves are written once; triggers (audit/triggers.py) hold that promise."""

from django.db import models

from audit.identifiers import new_id


class Event(models.Model):
    """One thing that happened. People and actors are text and ids, never foreign keys: the log outlives them.

    Every column but `salt` stands in the event's JSON (docs/protocol.md section 9); `salt` is hashed before it.
    A new column must enter `audit.entries.event_body`, or changing it would go unseen.
    """

    class Outcome(models.TextChoices):
        SUCCESS = "success"
        DENIED = "denied"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    kind = models.CharField(max_length=64)
    at = models.DateTimeField()
    actor_kind = models.CharField(max_length=32)
    actor_id = models.CharField(max_length=64, blank=True)
    agent_id = models.UUIDField(null=True)
    human_id = models.UUIDField(null=True)
    service_provider_id = models.UUIDField(null=True)
    grant_id = models.UUIDField(null=True)
    token_jti = models.CharField(max_length=64, null=True)  # noqa: DJ001 - absent is not empty in the event's JSON
    outcome = models.CharField(max_length=16, choices=Outcome)
    reason = models.CharField(max_length=64, null=True)  # noqa: DJ001 - as above
    request_id = models.CharField(max_length=64, blank=True)
    data = models.JSONField()
    salt = models.BinaryField(max_length=32)

    class Meta:
        indexes = [
            models.Index(fields=["agent_id", "id"], name="event_agent"),
            models.Index(fields=["human_id", "id"], name="event_human"),
            models.Index(fields=["grant_id", "id"], name="event_grant"),
            models.Index(fields=["kind", "id"], name="event_kind"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(outcome__in=["success", "denied", "failed"]), name="event_outcome"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


class Opening(models.Model):
    """What a commitment in an event's data hides. Deleting it is erasure: the event stays and still proves."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    event = models.ForeignKey(Event, on_delete=models.PROTECT, related_name="openings")
    member = models.CharField(max_length=64)
    salt = models.BinaryField(max_length=32)
    value = models.JSONField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["event", "member"], name="opening_one_per_member")]

    def __str__(self) -> str:
        return f"{self.member} of {self.event_id}"


class QueueEntry(models.Model):
    """An event that waits for its number. Written with the event, deleted with its numbering: what decides."""

    event = models.OneToOneField(
        Event, on_delete=models.PROTECT, primary_key=True, related_name="queue_entry"
    )

    def __str__(self) -> str:
        return str(self.event_id)


class Leaf(models.Model):
    """An event's place in the log: its number, its leaf hash and the hash link over everything before it."""

    leaf_index = models.BigIntegerField(primary_key=True)
    event = models.OneToOneField(Event, on_delete=models.PROTECT, related_name="leaf")
    leaf_hash = models.BinaryField(max_length=32)
    link = models.BinaryField(max_length=32)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(leaf_index__gte=0), name="leaf_index_not_negative")
        ]

    def __str__(self) -> str:
        return str(self.leaf_index)


class Head(models.Model):
    """Where the log ends: the one row two sequencers compete for by compare-and-swap."""

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)
    size = models.BigIntegerField()
    link = models.BinaryField(max_length=32)
    moved_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="head_only_one")]

    def __str__(self) -> str:
        return f"{self.size} leaves"


class RefusalCount(models.Model):
    """How many anonymous refusals one route and error had in one minute; gone once summed up in an event."""

    ROUTE_LENGTH = 128
    ERROR_LENGTH = 64

    route = models.CharField(max_length=ROUTE_LENGTH)
    error = models.CharField(max_length=ERROR_LENGTH)
    minute = models.DateTimeField()
    count = models.PositiveBigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["route", "error", "minute"], name="refusal_count_one_per_minute")
        ]

    def __str__(self) -> str:
        return f"{self.route} {self.error} {self.minute}"
