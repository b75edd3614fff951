"""Tables of the audit log. Events and leaves are write-once (audit/db/trigger_operations.py)."""

from django.db import models

from audit.kinds import DECISION_ALLOWED
from audit.new_ids import new_id


class Event(models.Model):
    """One event. People and actors are text and ids, never foreign keys: the log outlives them.

    Every column except `salt` is in the event's JSON (docs/protocol.md section 9); `salt` is hashed
    before it. Add a new column to `audit.log.event_encoding.event_body`, or the hash does not cover
    it and a change stays undetected.
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
    token_jti = models.CharField(max_length=64, null=True)  # noqa: DJ001 - null: absent in the JSON
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
                fields=["outcome", "id"],
                condition=~models.Q(outcome="success"),
                name="event_not_success",
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(outcome__in=["success", "denied", "failed"]),
                name="event_outcome",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


class Opening(models.Model):
    """The value behind a commitment in an event. Deleting it is erasure: the event still proves."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    event = models.ForeignKey(
        Event, on_delete=models.PROTECT, related_name="openings", db_constraint=False
    )
    member = models.CharField(max_length=64)
    salt = models.BinaryField(max_length=32)
    value = models.JSONField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["event", "member"], name="opening_one_per_member")
        ]

    def __str__(self) -> str:
        return f"{self.member} of {self.event_id}"


class QueueEntry(models.Model):
    """An event that waits for its number. Inserted with the event, deleted when it is numbered."""

    event = models.OneToOneField(
        Event,
        on_delete=models.PROTECT,
        primary_key=True,
        related_name="queue_entry",
        db_constraint=False,
    )

    def __str__(self) -> str:
        return str(self.event_id)


class Leaf(models.Model):
    """An event's place in the log: its number, entry, leaf hash, and a hash link to all before it.

    Leaves stay for ever; their events may later be only in the archive, so there is no foreign key
    constraint. Agent, human and kind are repeated here, so that an index finds events in log order.
    """

    leaf_index = models.BigIntegerField(primary_key=True)
    event = models.OneToOneField(
        Event, on_delete=models.PROTECT, related_name="leaf", db_constraint=False
    )
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
            # Most leaves have this kind: a scan finds them quickly, and indexing them would slow
            # inserts.
            models.Index(
                fields=["kind", "leaf_index"],
                condition=~models.Q(kind=DECISION_ALLOWED),
                name="leaf_kind",
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(leaf_index__gte=0), name="leaf_index_not_negative"
            )
        ]

    def __str__(self) -> str:
        return str(self.leaf_index)


class Head(models.Model):
    """The end of the log: the single row that sequencers move by compare-and-swap.

    `peaks` are the roots of the full subtrees, largest first, 32 bytes each; the tree grows from
    them.
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
    """The root of a full tile: hash `index` of `level` (C2SP tlog-tiles). Leaves are level 0."""

    level = models.PositiveSmallIntegerField()
    index = models.BigIntegerField()
    hash = models.BinaryField(max_length=32)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["level", "index"], name="node_one_per_place"),
            models.CheckConstraint(
                condition=models.Q(level__gte=1, index__gte=0), name="node_place"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.level}/{self.index}"


class Checkpoint(models.Model):
    """A C2SP signed note of the log's size and root. Never changed or deleted."""

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
    """A witness found this checkpoint consistent with all before; `line` is added to the note."""

    checkpoint = models.ForeignKey(
        Checkpoint, on_delete=models.PROTECT, related_name="cosignatures"
    )
    witness = models.CharField(max_length=255)
    line = models.TextField()
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["checkpoint", "witness"], name="cosignature_one_per_witness"
            )
        ]

    def __str__(self) -> str:
        return f"{self.witness} of {self.checkpoint_id}"


class CheckpointCopy(models.Model):
    """This checkpoint was copied to the external store `store`, a URI without options."""

    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="copies")
    store = models.CharField(max_length=255)
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["checkpoint", "store"], name="copy_one_per_store")
        ]

    def __str__(self) -> str:
        return f"{self.checkpoint_id} in {self.store}"


class Segment(models.Model):
    """Leaves `first` ≤ index < `end` are in the archive, and were read back and proved there."""

    first = models.BigIntegerField(primary_key=True)
    end = models.BigIntegerField(unique=True)
    manifest_sha256 = models.BinaryField(max_length=32)
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(first__gte=0, end__gt=models.F("first")),
                name="segment_not_empty",
            )
        ]

    def __str__(self) -> str:
        return f"{self.first}–{self.end}"


class DroppedMonth(models.Model):
    """A month of archived events was dropped from the database.

    `kept_from` is the first leaf that still had its event.
    """

    month = models.DateField()
    events = models.BigIntegerField()
    first_leaf = models.BigIntegerField()
    last_leaf = models.BigIntegerField()
    kept_from = models.BigIntegerField()
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.month:%Y-%m}"


class LogBreak(models.Model):
    """A restore, after which the log continues under another name.

    Its first `size` leaves are those of the previous log.
    """

    # The second (UTC) in which it began, as 14 digits, so that names sort by time.
    name = models.CharField(max_length=14, primary_key=True)
    # The name of the previous log; empty for the first one.
    previous = models.CharField(max_length=14, blank=True)
    size = models.BigIntegerField()
    root = models.BinaryField(max_length=32)
    # How much of the previous log this one keeps: checkpoints of at most `signed` leaves, segments
    # up to `archived`.
    signed = models.BigIntegerField()
    archived = models.BigIntegerField()
    # Logs in the external store that this database does not know: the restore lost them.
    lost = models.JSONField(default=list)
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(size__gte=0, signed__gte=0, archived__gte=0),
                name="log_break_sizes",
            )
        ]

    def __str__(self) -> str:
        return f"{self.name} from {self.size}"


class RefusalCount(models.Model):
    """Refusals of anonymous callers, and batched ones of any caller, per route, error and minute.

    Deleted once an event summarises them. For a barred key, the route names the caller.
    """

    ROUTE_LENGTH = 128
    ERROR_LENGTH = 64

    route = models.CharField(max_length=ROUTE_LENGTH)
    error = models.CharField(max_length=ERROR_LENGTH)
    minute = models.DateTimeField()
    count = models.PositiveBigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["route", "error", "minute"], name="refusal_count_one_per_minute"
            )
        ]

    def __str__(self) -> str:
        return f"{self.route} {self.error} {self.minute}"
