"""Rows of the audit log. Events and leaves are written once; triggers (audit/triggers.py) hold that promise."""

from django.db import models

from audit.identifiers import new_id
from audit.kinds import DECISION_ALLOWED


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
            models.Index(
                fields=["outcome", "id"], condition=~models.Q(outcome="success"), name="event_not_success"
            ),
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
    event = models.ForeignKey(Event, on_delete=models.PROTECT, related_name="openings", db_constraint=False)
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
        Event, on_delete=models.PROTECT, primary_key=True, related_name="queue_entry", db_constraint=False
    )

    def __str__(self) -> str:
        return str(self.event_id)


class Leaf(models.Model):
    """An event's place in the log: its number, its entry and leaf hash, and the hash link over everything before it.

    Leaves stay for good; their events may live in the archive alone one day, so no constraint ties them. Whose event it
    is and of which kind stands here again, so that theirs are found in the order of the log however long it is.
    """

    leaf_index = models.BigIntegerField(primary_key=True)
    event = models.OneToOneField(Event, on_delete=models.PROTECT, related_name="leaf", db_constraint=False)
    entry = models.BinaryField(max_length=32)
    leaf_hash = models.BinaryField(max_length=32)
    link = models.BinaryField(max_length=32)
    agent_id = models.UUIDField(null=True)
    human_id = models.UUIDField(null=True)
    kind = models.CharField(max_length=64)

    class Meta:
        indexes = [
            models.Index(
                fields=["agent_id", "leaf_index"],
                condition=models.Q(agent_id__isnull=False),
                name="leaf_agent",
            ),
            models.Index(
                fields=["human_id", "leaf_index"],
                condition=models.Q(human_id__isnull=False),
                name="leaf_human",
            ),
            # Most of a log is of this kind; whoever looks for it finds it without an index, which would cost each its time.
            models.Index(
                fields=["kind", "leaf_index"], condition=~models.Q(kind=DECISION_ALLOWED), name="leaf_kind"
            ),
        ]
        constraints = [
            models.CheckConstraint(condition=models.Q(leaf_index__gte=0), name="leaf_index_not_negative")
        ]

    def __str__(self) -> str:
        return str(self.leaf_index)


class Head(models.Model):
    """Where the log ends: the one row two sequencers compete for by compare-and-swap.

    `peaks` are the roots of the full subtrees, largest first, 32 bytes each: what the tree grows from.
    """

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)
    size = models.BigIntegerField()
    link = models.BinaryField(max_length=32)
    peaks = models.BinaryField(default=b"")
    moved_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="head_only_one")]

    def __str__(self) -> str:
        return f"{self.size} leaves"


class Node(models.Model):
    """The root of a full tile: hash number `index` of tile level `level` (C2SP tlog-tiles). Level 0 are the leaves."""

    level = models.PositiveSmallIntegerField()
    index = models.BigIntegerField()
    hash = models.BinaryField(max_length=32)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["level", "index"], name="node_one_per_place"),
            models.CheckConstraint(condition=models.Q(level__gte=1, index__gte=0), name="node_place"),
        ]

    def __str__(self) -> str:
        return f"{self.level}/{self.index}"


class Checkpoint(models.Model):
    """The log said and signed how long it is and what its root is: a C2SP signed note. Never taken back."""

    size = models.BigIntegerField(primary_key=True)
    root = models.BinaryField(max_length=32)
    note = models.TextField()
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(size__gte=1), name="checkpoint_size_positive")
        ]

    def __str__(self) -> str:
        return f"{self.size} leaves"


class Cosignature(models.Model):
    """A witness saw this checkpoint and found it consistent with all it saw before: `line` joins the note."""

    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="cosignatures")
    witness = models.CharField(max_length=255)
    line = models.TextField()
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["checkpoint", "witness"], name="cosignature_one_per_witness")
        ]

    def __str__(self) -> str:
        return f"{self.witness} of {self.checkpoint_id}"


class CheckpointCopy(models.Model):
    """This checkpoint stands outside the database, in `store`."""

    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="copies")
    store = models.CharField(max_length=255)
    at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["checkpoint", "store"], name="copy_one_per_store")]

    def __str__(self) -> str:
        return f"{self.checkpoint_id} in {self.store}"


class Segment(models.Model):
    """Leaves `first` ≤ index < `end` stand in the archive, and were read back and proved there."""

    first = models.BigIntegerField(primary_key=True)
    end = models.BigIntegerField(unique=True)
    manifest_sha256 = models.BinaryField(max_length=32)
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(first__gte=0, end__gt=models.F("first")), name="segment_not_empty"
            )
        ]

    def __str__(self) -> str:
        return f"{self.first}–{self.end}"


class DroppedMonth(models.Model):
    """The events of a month went out of the database, since they stand in the archive; `kept_from` is the first leaf that still had its event."""

    month = models.DateField()
    events = models.BigIntegerField()
    first_leaf = models.BigIntegerField()
    last_leaf = models.BigIntegerField()
    kept_from = models.BigIntegerField()
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.month:%Y-%m}"


class LogBreak(models.Model):
    """A restore, after which the log continues under another name: its first `size` leaves are those of the previous log."""

    # The second in which it began, as 14 digits, so that names sort in the order of the logs.
    name = models.CharField(max_length=14, primary_key=True)
    # The name of the previous log; empty for the first one.
    previous = models.CharField(max_length=14, blank=True)
    size = models.BigIntegerField()
    root = models.BinaryField(max_length=32)
    # How much of the previous log this one keeps: checkpoints of at most `signed` leaves, segments up to `archived`.
    signed = models.BigIntegerField()
    archived = models.BigIntegerField()
    # Logs known outside and missing from this database: the restore lost them.
    lost = models.JSONField(default=list)
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(size__gte=0, signed__gte=0, archived__gte=0), name="log_break_sizes"
            )
        ]

    def __str__(self) -> str:
        return f"{self.name} from {self.size}"


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
