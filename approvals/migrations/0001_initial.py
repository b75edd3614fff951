"""Creates the rows of the approvals app."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import audit.identifiers


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Passkey",
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
            ],
        ),
        migrations.CreateModel(
            name="Challenge",
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
                    "purpose",
                    models.CharField(
                        choices=[
                            ("setup", "Setup"),
                            ("sign_in", "Sign In"),
                            ("passkey", "Passkey"),
                            ("presence", "Presence"),
                            ("approval", "Approval"),
                            ("claim", "Claim"),
                            ("confirmation", "Confirmation"),
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
                        default=audit.identifiers.new_id,
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
            ],
            options={
                "indexes": [
                    models.Index(fields=["kind", "subject", "created_at"], name="receipt_subject")
                ],
            },
        ),
        migrations.CreateModel(
            name="SetupCode",
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
                    "kind",
                    models.CharField(
                        choices=[("first_admin", "First Admin"), ("invitation", "Invitation")],
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
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("kind__in", ["first_admin", "invitation"])),
                        name="setup_code_kind",
                    )
                ],
            },
        ),
    ]
