"""What decisions need: counters, confirmations, presence, the replay cache and its feed."""

from datetime import UTC, datetime

import django.db.models.deletion
from django.apps.registry import Apps
from django.conf import settings
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

import audit.new_ids
from audit.db.trigger_operations import append_only, state_machine


def begin_first_epoch(apps: Apps, _editor: BaseDatabaseSchemaEditor) -> None:
    """Start with the replay cache in the database; the jobs move it to Redis if one is set."""
    apps.get_model("verifier", "Home").objects.create(began_at=datetime.now(UTC))


class Migration(migrations.Migration):
    initial = True

    replaces = [
        ("verifier", "0001_initial"),
        ("verifier", "0002_states"),
        ("verifier", "0003_state_change"),
        ("verifier", "0004_provider_call"),
        ("verifier", "0005_home"),
        ("verifier", "0006_told"),
        ("verifier", "0007_stream_cursor_without_entry_id"),
        ("verifier", "0008_home_back_after"),
        ("verifier", "0009_home_history"),
        ("verifier", "0010_guards_by_table"),
        ("verifier", "0011_operations_by_grant_and_key"),
    ]
    # By its former name, so that `migrate` refuses a database from before release 4
    # (docs/upgrade.md).
    dependencies = [
        ("registry", "0017_release_4"),
        ("sessions", "0001_initial"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="GrantLedger",
            fields=[
                (
                    "grant",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="+",
                        serialize=False,
                        to="registry.grant",
                    ),
                ),
                ("tat_us", models.BigIntegerField(null=True)),
                ("uses", models.BigIntegerField(default=0)),
                ("spent", models.JSONField(default=dict)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("uses__gte", 0)), name="grant_ledger_uses_not_negative"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="PresenceLease",
            fields=[
                (
                    "human",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="+",
                        serialize=False,
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                ("session_epoch", models.PositiveIntegerField()),
                ("began_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                (
                    "session",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="sessions.session",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="AgentOperation",
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
                ("key", models.CharField(max_length=128)),
                ("action_digest", models.BinaryField(max_length=32)),
                ("answer", models.JSONField()),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField(db_index=True, null=True)),
                (
                    "grant",
                    # The constraint below has an index that begins with the grant. PostgreSQL
                    # preferred one of the grant alone, and read all its operations.
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="registry.grant",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("grant", "key"), name="agent_operation_once")
                ],
            },
        ),
        migrations.CreateModel(
            name="Confirmation",
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
                ("grant_version", models.PositiveIntegerField()),
                ("action", models.JSONField()),
                ("action_digest", models.BinaryField(max_length=32)),
                ("idempotency_key", models.CharField(max_length=128)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("pending", "Pending"),
                            ("confirmed", "Confirmed"),
                            ("denied", "Denied"),
                            ("expired", "Expired"),
                            ("consumed", "Consumed"),
                        ],
                        default="pending",
                        max_length=16,
                    ),
                ),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(null=True)),
                ("usable_until", models.DateTimeField(null=True)),
                ("consumed_at", models.DateTimeField(null=True)),
                (
                    "grant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="registry.grant",
                    ),
                ),
                (
                    "human",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(
                        fields=["grant", "idempotency_key"], name="confirmation_grant_key"
                    ),
                    models.Index(
                        fields=["status", "expires_at"], name="confirmation_status_expires"
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("status", "expired"), _negated=True),
                        fields=("grant", "grant_version", "action_digest", "idempotency_key"),
                        name="confirmation_asked_once",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "status__in",
                                ["pending", "confirmed", "denied", "expired", "consumed"],
                            )
                        ),
                        name="confirmation_status",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("status__in", ["confirmed", "consumed"]), _negated=True),
                            models.Q(
                                ("decided_at__isnull", False),
                                ("human__isnull", False),
                                ("usable_until__isnull", False),
                            ),
                            _connector="OR",
                        ),
                        name="confirmation_yes_is_whole",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("status", "denied"), _negated=True),
                            models.Q(("decided_at__isnull", False), ("human__isnull", False)),
                            _connector="OR",
                        ),
                        name="confirmation_no_is_whole",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("consumed_at__isnull", False), ("status", "consumed")),
                            models.Q(
                                models.Q(("status", "consumed"), _negated=True),
                                ("consumed_at__isnull", True),
                            ),
                            _connector="OR",
                        ),
                        name="confirmation_consumed_is_dated",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="StateChange",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("position", models.BigIntegerField(db_index=True)),
                ("subject", models.CharField(max_length=16)),
                ("subject_id", models.CharField(max_length=64)),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="ProviderCall",
            fields=[
                ("digest", models.BinaryField(max_length=32, primary_key=True, serialize=False)),
                ("body_sha256", models.BinaryField(max_length=32)),
                ("answer", models.TextField()),
                ("expires_at", models.DateTimeField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="Home",
            fields=[
                (
                    "id",
                    models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False),
                ),
                ("epoch", models.PositiveBigIntegerField(default=1)),
                (
                    "kind",
                    models.CharField(
                        choices=[("database", "Database"), ("redis", "Redis")],
                        default="database",
                        max_length=16,
                    ),
                ),
                ("began_at", models.DateTimeField()),
                ("servers", models.JSONField(default=list)),
                ("leaving_at", models.DateTimeField(null=True)),
                (
                    "leaving_for",
                    models.CharField(
                        blank=True,
                        choices=[("database", "Database"), ("redis", "Redis")],
                        max_length=16,
                    ),
                ),
                ("back_after", models.PositiveSmallIntegerField(default=0)),
                (
                    "vouched_for",
                    models.CharField(blank=True, db_default="", default="", max_length=128),
                ),
                ("held_at", models.DateTimeField(null=True)),
                ("held_because", models.TextField(blank=True, db_default="", default="")),
                ("history", models.CharField(blank=True, db_default="", default="", max_length=14)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(condition=models.Q(("id", 1)), name="home_only_one"),
                    models.CheckConstraint(
                        condition=models.Q(("kind__in", ["database", "redis"])), name="home_kind"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("leaving_at__isnull", True), ("leaving_for", "")),
                            models.Q(
                                ("leaving_at__isnull", False),
                                ("leaving_for__in", ["database", "redis"]),
                            ),
                            _connector="OR",
                        ),
                        name="home_leaves_for_somewhere",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="StreamCursor",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("epoch", models.PositiveBigIntegerField()),
                ("shard", models.PositiveSmallIntegerField()),
                ("number", models.PositiveBigIntegerField(default=0)),
                ("told", models.PositiveBigIntegerField(default=0)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("epoch", "shard"), name="stream_cursor_one")
                ],
            },
        ),
        state_machine(
            "verifier_confirmation",
            "status",
            initial=["pending"],
            transitions={
                "pending": ["confirmed", "denied", "expired"],
                "confirmed": ["consumed", "expired"],
            },
        ),
        # Old entries of the feed are deleted, but none is changed.
        append_only("verifier_statechange", deletable=True),
        migrations.RunPython(begin_first_epoch, migrations.RunPython.noop),
    ]
