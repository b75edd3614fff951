"""Passkeys and challenges, receipts of what people signed, setup codes and recoveries."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import audit.new_ids


class Migration(migrations.Migration):
    initial = True

    replaces = [("approvals", "0001_initial")]
    dependencies = [migrations.swappable_dependency(settings.AUTH_USER_MODEL)]

    operations = [
        migrations.CreateModel(
            name="Passkey",
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
                ("credential_id", models.BinaryField(max_length=1023, unique=True)),
                ("public_key", models.BinaryField(max_length=2048)),
                ("user_handle", models.BinaryField(max_length=64)),
                ("sign_count", models.BigIntegerField()),
                ("name", models.CharField(max_length=80)),
                ("aaguid", models.CharField(blank=True, max_length=36)),
                ("transports", models.JSONField(default=list)),
                ("backed_up", models.BooleanField(default=False)),
                ("created_at", models.DateTimeField()),
                ("last_used_at", models.DateTimeField(null=True)),
                (
                    "human",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                ("backup_eligible", models.BooleanField(null=True)),
                ("seal", models.CharField(editable=False, max_length=80, null=True)),
            ],
        ),
        migrations.CreateModel(
            name="Challenge",
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
                    "purpose",
                    models.CharField(
                        choices=[
                            ("setup", "Setup"),
                            ("sign_in", "Sign In"),
                            ("passkey", "Passkey"),
                            ("presence", "Presence"),
                            ("verification", "Verification"),
                            ("approval", "Approval"),
                            ("claim", "Claim"),
                            ("confirmation", "Confirmation"),
                            ("break", "Break"),
                            ("release", "Release"),
                            ("resume", "Resume"),
                            ("second_step", "Second Step"),
                        ],
                        max_length=16,
                    ),
                ),
                ("challenge", models.BinaryField(max_length=32)),
                ("session", models.BinaryField(max_length=32)),
                ("subject", models.CharField(blank=True, max_length=64)),
                ("statement", models.JSONField(default=dict)),
                ("consent_text", models.TextField(blank=True)),
                ("data", models.JSONField(default=dict)),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("used_at", models.DateTimeField(null=True)),
                (
                    "human",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(
                        fields=["session", "purpose", "subject"], name="challenge_who_asks"
                    ),
                    models.Index(fields=["expires_at"], name="challenge_expires"),
                ],
            },
        ),
        migrations.CreateModel(
            name="Receipt",
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
                ("kind", models.CharField(max_length=16)),
                ("decision", models.CharField(max_length=16)),
                ("subject", models.CharField(max_length=64)),
                ("challenge", models.BinaryField(max_length=32, unique=True)),
                ("assertion", models.BinaryField(max_length=32)),
                ("passkey_name", models.CharField(max_length=80)),
                ("consent_text", models.TextField()),
                ("compact", models.TextField()),
                ("created_at", models.DateTimeField()),
                (
                    "human",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                ("kid", models.CharField(max_length=64, null=True)),
            ],
            options={
                "indexes": [
                    models.Index(fields=["kind", "subject", "created_at"], name="receipt_subject"),
                    # Counts the receipts that a key has signed.
                    models.Index(fields=["kid", "kind"], name="receipt_kid"),
                ],
            },
        ),
        migrations.CreateModel(
            name="SetupCode",
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
                        choices=[
                            ("first_admin", "First Admin"),
                            ("invitation", "Invitation"),
                            ("recovery", "Recovery"),
                        ],
                        max_length=16,
                    ),
                ),
                ("digest", models.BinaryField(max_length=32, unique=True)),
                ("email", models.EmailField(blank=True, max_length=254)),
                ("is_staff", models.BooleanField(default=False)),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("used_at", models.DateTimeField(null=True)),
                (
                    "human",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                ("seal", models.CharField(editable=False, max_length=80, null=True)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("kind__in", ["first_admin", "invitation", "recovery"])),
                        name="setup_code_kind",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Recovery",
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
                ("seal", models.CharField(editable=False, max_length=80, null=True)),
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
