"""The channels of notifications and their outbox."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import audit.new_ids


class Migration(migrations.Migration):
    dependencies = [
        ("approvals", "0002_squashed_0011_triggers"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="NotificationChannel",
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
                (
                    "kind",
                    models.CharField(
                        choices=[("email", "Email"), ("webhook", "Webhook")], max_length=16
                    ),
                ),
                ("target", models.CharField(blank=True, max_length=500)),
                ("secret", models.TextField(blank=True)),
                ("for_requests", models.BooleanField()),
                ("for_confirmations", models.BooleanField()),
                ("for_security", models.BooleanField()),
                ("quiet_from", models.TimeField(null=True)),
                ("quiet_until", models.TimeField(null=True)),
                ("created_at", models.DateTimeField()),
                (
                    "human",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Notification",
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
                (
                    "what",
                    models.CharField(
                        choices=[
                            ("request", "Request"),
                            ("request_ends", "Request Ends"),
                            ("confirmation", "Confirmation"),
                            ("passkey_added", "Passkey Added"),
                            ("passkey_removed", "Passkey Removed"),
                            ("recovery_begun", "Recovery Begun"),
                            ("channel_changed", "Channel Changed"),
                        ],
                        max_length=16,
                    ),
                ),
                ("subject", models.UUIDField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "Pending"),
                            ("sent", "Sent"),
                            ("moot", "Moot"),
                            ("dead", "Dead"),
                        ],
                        default="pending",
                        max_length=8,
                    ),
                ),
                ("created_at", models.DateTimeField()),
                ("due_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("attempts", models.PositiveSmallIntegerField(default=0)),
                ("error", models.CharField(blank=True, max_length=40)),
                ("ended_at", models.DateTimeField(null=True)),
                (
                    "channel",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="approvals.notificationchannel",
                    ),
                ),
            ],
        ),
        migrations.AddIndex(
            model_name="notificationchannel",
            index=models.Index(fields=["human", "kind"], name="channel_human_kind"),
        ),
        migrations.AddConstraint(
            model_name="notificationchannel",
            constraint=models.UniqueConstraint(
                condition=models.Q(("kind", "email")), fields=("human",), name="channel_one_email"
            ),
        ),
        migrations.AddConstraint(
            model_name="notificationchannel",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("kind", "email"), ("secret", ""), ("target", "")),
                    models.Q(
                        ("kind", "webhook"),
                        models.Q(("target", ""), _negated=True),
                        models.Q(("secret", ""), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="channel_kind",
            ),
        ),
        migrations.AddConstraint(
            model_name="notificationchannel",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("quiet_from", None), ("quiet_until", None)),
                    models.Q(("quiet_from__isnull", False), ("quiet_until__isnull", False)),
                    _connector="OR",
                ),
                name="channel_quiet_is_whole",
            ),
        ),
        migrations.AddIndex(
            model_name="notification",
            index=models.Index(fields=["state", "due_at"], name="notification_state_due"),
        ),
        migrations.AddIndex(
            model_name="notification",
            index=models.Index(fields=["ended_at"], name="notification_ended"),
        ),
        migrations.AddConstraint(
            model_name="notification",
            constraint=models.UniqueConstraint(
                fields=("channel", "what", "subject"), name="notification_told_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="notification",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("ended_at", None), ("state", "pending")),
                    models.Q(("state__in", ["sent", "moot", "dead"]), ("ended_at__isnull", False)),
                    _connector="OR",
                ),
                name="notification_state",
            ),
        ),
    ]
