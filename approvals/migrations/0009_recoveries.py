"""Recoveries: the account that gets a new passkey, the administrators who decided it, and when."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import audit.identifiers


class Migration(migrations.Migration):
    dependencies = [
        ("approvals", "0008_receipts_of_deleted_people"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Recovery",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=audit.identifiers.new_id,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "case",
                    models.CharField(
                        choices=[("lost", "Lost"), ("stolen", "Stolen")], max_length=8
                    ),
                ),
                ("begun_at", models.DateTimeField()),
                ("confirmed_at", models.DateTimeField(null=True)),
                ("ready_at", models.DateTimeField(null=True)),
                ("expires_at", models.DateTimeField()),
                ("cancelled_at", models.DateTimeField(null=True)),
                ("used_at", models.DateTimeField(null=True)),
                ("link_digest", models.BinaryField(max_length=32, null=True, unique=True)),
                ("link_expires_at", models.DateTimeField(null=True)),
                ("notice_due_at", models.DateTimeField(null=True)),
                ("notice_failures", models.PositiveSmallIntegerField(default=0)),
                (
                    "begun_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "confirmed_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "human",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["notice_due_at"], name="recovery_notice_due")],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("cancelled_at", None), ("used_at", None)),
                        fields=("human",),
                        name="recovery_one_open",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("case", "lost"),
                            ("ready_at", None),
                            models.Q(("confirmed_at", None), _negated=True),
                            _connector="OR",
                        ),
                        name="recovery_stolen_is_confirmed",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("confirmed_by", None),
                            ("begun_by", None),
                            models.Q(("confirmed_by", models.F("begun_by")), _negated=True),
                            _connector="OR",
                        ),
                        name="recovery_second_is_another",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("used_at", None),
                            models.Q(("ready_at", None), _negated=True),
                            _connector="OR",
                        ),
                        name="recovery_used_was_ready",
                    ),
                ],
            },
        ),
    ]
