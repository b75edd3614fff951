"""Groups of approvers, the rules that name them, and absences, each with a seal."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import audit.new_ids
from audit.db.trigger_operations import keep_ended

_SEALED = ("absence", "approvalrule", "approvergroup", "groupmember")


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0018_catalogues"),
    ]

    operations = [
        migrations.CreateModel(
            name="ApproverGroup",
            fields=[
                ("seal", models.CharField(editable=False, max_length=80, null=True)),
                (
                    "id",
                    models.UUIDField(
                        default=audit.new_ids.new_id,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("name", models.CharField(max_length=80, unique=True)),
                ("wait_minutes", models.PositiveSmallIntegerField()),
                ("created_at", models.DateTimeField()),
                (
                    "next",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="registry.approvergroup",
                    ),
                ),
            ],
            options={
                "abstract": False,
            },
        ),
        migrations.CreateModel(
            name="Absence",
            fields=[
                ("seal", models.CharField(editable=False, max_length=80, null=True)),
                (
                    "id",
                    models.UUIDField(
                        default=audit.new_ids.new_id,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("starts_at", models.DateTimeField()),
                ("ends_at", models.DateTimeField()),
                ("created_at", models.DateTimeField()),
                (
                    "deputy",
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
                "indexes": [models.Index(fields=["ends_at"], name="absence_ends")],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("starts_at__lt", models.F("ends_at"))),
                        name="absence_has_length",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("deputy", None),
                            models.Q(("deputy", models.F("human")), _negated=True),
                            _connector="OR",
                        ),
                        name="absence_deputy_is_another",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="ApprovalRule",
            fields=[
                ("seal", models.CharField(editable=False, max_length=80, null=True)),
                (
                    "id",
                    models.UUIDField(
                        default=audit.new_ids.new_id,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("position", models.PositiveIntegerField()),
                ("name", models.CharField(max_length=80)),
                (
                    "action_type",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("read", "read"),
                            ("write", "write"),
                            ("delete", "delete"),
                            ("transact", "transact"),
                            ("custom", "custom"),
                        ],
                        max_length=16,
                    ),
                ),
                ("above_minor", models.BigIntegerField(null=True)),
                ("currency", models.CharField(blank=True, max_length=3)),
                ("created_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(null=True)),
                (
                    "service_provider",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="registry.serviceprovider",
                    ),
                ),
                (
                    "group",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="registry.approvergroup",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("above_minor", None), ("currency", "")),
                            models.Q(
                                ("above_minor__gte", 0), models.Q(("currency", ""), _negated=True)
                            ),
                            _connector="OR",
                        ),
                        name="approval_rule_amount_has_currency",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="GroupMember",
            fields=[
                ("seal", models.CharField(editable=False, max_length=80, null=True)),
                (
                    "id",
                    models.UUIDField(
                        default=audit.new_ids.new_id,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("created_at", models.DateTimeField()),
                (
                    "group",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="registry.approvergroup",
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
                "constraints": [
                    models.UniqueConstraint(fields=("group", "human"), name="group_member_once")
                ],
            },
        ),
        *(keep_ended(f"registry_{name}", "seal", into="kms_endedseal") for name in _SEALED),
    ]
