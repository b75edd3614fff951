"""The tables of the log: events, the tree over them, its checkpoints and the archive."""

from typing import Any

import django.db.models.deletion
from django.db import migrations, models

import audit.new_ids


class _CreatePartitioned(migrations.CreateModel):
    """On PostgreSQL, create a table partitioned by `id`. Ids begin with their time.

    The next migration creates the partitions.
    """

    def database_forwards(
        self, app_label: str, editor: Any, from_state: Any, to_state: Any
    ) -> None:
        plain = editor.sql_create_table
        if editor.connection.vendor == "postgresql":
            editor.sql_create_table = f"{plain} PARTITION BY RANGE (id)"
        super().database_forwards(app_label, editor, from_state, to_state)
        editor.sql_create_table = plain


class Migration(migrations.Migration):
    initial = True

    replaces = [("audit", "0001_initial")]
    dependencies = []

    operations = [
        _CreatePartitioned(
            name="Event",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=audit.new_ids.new_id,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("kind", models.CharField(max_length=64)),
                ("at", models.DateTimeField()),
                ("actor_kind", models.CharField(max_length=32)),
                ("actor_id", models.CharField(blank=True, max_length=64)),
                ("agent_id", models.UUIDField(null=True)),
                ("human_id", models.UUIDField(null=True)),
                ("service_provider_id", models.UUIDField(null=True)),
                ("grant_id", models.UUIDField(null=True)),
                ("token_jti", models.CharField(max_length=64, null=True)),
                (
                    "outcome",
                    models.CharField(
                        choices=[
                            ("success", "Success"),
                            ("denied", "Denied"),
                            ("failed", "Failed"),
                        ],
                        max_length=16,
                    ),
                ),
                ("reason", models.CharField(max_length=64, null=True)),
                ("request_id", models.CharField(blank=True, max_length=64)),
                ("data", models.JSONField()),
                ("salt", models.BinaryField(max_length=32)),
            ],
            options={
                "indexes": [
                    models.Index(fields=["agent_id", "id"], name="event_agent"),
                    models.Index(fields=["human_id", "id"], name="event_human"),
                    models.Index(fields=["grant_id", "id"], name="event_grant"),
                    models.Index(fields=["kind", "id"], name="event_kind"),
                    # For lists of refusals and failures, which are few among all events.
                    models.Index(
                        condition=models.Q(("outcome", "success"), _negated=True),
                        fields=["outcome", "id"],
                        name="event_not_success",
                    ),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("outcome__in", ["success", "denied", "failed"])),
                        name="event_outcome",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Head",
            fields=[
                (
                    "id",
                    models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False),
                ),
                ("size", models.BigIntegerField()),
                ("link", models.BinaryField(max_length=32)),
                ("moved_at", models.DateTimeField(null=True)),
                ("peaks", models.BinaryField(default=b"")),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(condition=models.Q(("id", 1)), name="head_only_one")
                ],
            },
        ),
        # Leaves stay when the month of their events is dropped, so no foreign key to `event` has a
        # constraint.
        migrations.CreateModel(
            name="Leaf",
            fields=[
                ("leaf_index", models.BigIntegerField(primary_key=True, serialize=False)),
                ("leaf_hash", models.BinaryField(max_length=32)),
                ("link", models.BinaryField(max_length=32)),
                (
                    "event",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="leaf",
                        to="audit.event",
                    ),
                ),
                ("entry", models.BinaryField(max_length=32)),
                # Copied from the event, so that an index lists them in the order of the log.
                ("agent_id", models.UUIDField(null=True)),
                ("human_id", models.UUIDField(null=True)),
                ("kind", models.CharField(max_length=64)),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("agent_id__isnull", False)),
                        fields=["agent_id", "leaf_index"],
                        name="leaf_agent",
                    ),
                    models.Index(
                        condition=models.Q(("human_id__isnull", False)),
                        fields=["human_id", "leaf_index"],
                        name="leaf_human",
                    ),
                    # Most leaves have this kind: a scan finds them, and each would slow inserts.
                    models.Index(
                        condition=models.Q(("kind", "verifier.decision.allowed"), _negated=True),
                        fields=["kind", "leaf_index"],
                        name="leaf_kind",
                    ),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("leaf_index__gte", 0)), name="leaf_index_not_negative"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Opening",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=audit.new_ids.new_id,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("member", models.CharField(max_length=64)),
                ("salt", models.BinaryField(max_length=32)),
                ("value", models.JSONField()),
                (
                    "event",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="openings",
                        to="audit.event",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("event", "member"), name="opening_one_per_member"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="RefusalCount",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("route", models.CharField(max_length=128)),
                ("error", models.CharField(max_length=64)),
                ("minute", models.DateTimeField()),
                ("count", models.PositiveBigIntegerField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("route", "error", "minute"), name="refusal_count_one_per_minute"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="QueueEntry",
            fields=[
                (
                    "event",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="queue_entry",
                        serialize=False,
                        to="audit.event",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Checkpoint",
            fields=[
                ("size", models.BigIntegerField(primary_key=True, serialize=False)),
                ("root", models.BinaryField(max_length=32)),
                ("note", models.TextField()),
                ("at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("size__gte", 1)), name="checkpoint_size_positive"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Node",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("level", models.PositiveSmallIntegerField()),
                ("index", models.BigIntegerField()),
                ("hash", models.BinaryField(max_length=32)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("level", "index"), name="node_one_per_place"),
                    models.CheckConstraint(
                        condition=models.Q(("index__gte", 0), ("level__gte", 1)), name="node_place"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Segment",
            fields=[
                ("first", models.BigIntegerField(primary_key=True, serialize=False)),
                ("end", models.BigIntegerField(unique=True)),
                ("manifest_sha256", models.BinaryField(max_length=32)),
                ("at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("end__gt", models.F("first")), ("first__gte", 0)),
                        name="segment_not_empty",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="CheckpointCopy",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("store", models.CharField(max_length=255)),
                ("at", models.DateTimeField()),
                (
                    "checkpoint",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="copies",
                        to="audit.checkpoint",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("checkpoint", "store"), name="copy_one_per_store"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Cosignature",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("witness", models.CharField(max_length=255)),
                ("line", models.TextField()),
                ("at", models.DateTimeField()),
                (
                    "checkpoint",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="cosignatures",
                        to="audit.checkpoint",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("checkpoint", "witness"), name="cosignature_one_per_witness"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="DroppedMonth",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("month", models.DateField()),
                ("events", models.BigIntegerField()),
                ("first_leaf", models.BigIntegerField()),
                ("last_leaf", models.BigIntegerField()),
                ("kept_from", models.BigIntegerField()),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="LogBreak",
            fields=[
                ("name", models.CharField(max_length=14, primary_key=True, serialize=False)),
                ("previous", models.CharField(blank=True, max_length=14)),
                ("size", models.BigIntegerField()),
                ("root", models.BinaryField(max_length=32)),
                ("signed", models.BigIntegerField()),
                ("archived", models.BigIntegerField()),
                ("lost", models.JSONField(default=list)),
                ("at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("archived__gte", 0), ("signed__gte", 0), ("size__gte", 0)
                        ),
                        name="log_break_sizes",
                    )
                ],
            },
        ),
    ]
