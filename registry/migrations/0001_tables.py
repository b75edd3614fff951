"""The tables of people, agents, service providers, grants and tokens."""

import django.db.models.deletion
import django.db.models.functions.text
from django.conf import settings
from django.db import migrations, models

import audit.new_ids


class Migration(migrations.Migration):
    initial = True

    replaces = [("registry", "0001_initial")]
    dependencies = []

    operations = [
        migrations.CreateModel(
            name="BarredKey",
            fields=[
                ("jkt", models.CharField(max_length=43, primary_key=True, serialize=False)),
                ("reason", models.CharField(max_length=32)),
                ("barred_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="SpentProof",
            fields=[
                ("digest", models.BinaryField(max_length=32, primary_key=True, serialize=False)),
                ("expires_at", models.DateTimeField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="Human",
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
                ("email", models.EmailField(max_length=254, unique=True)),
                ("name", models.CharField(max_length=80)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("active", "Active"),
                            ("suspended", "Suspended"),
                            ("deleted", "Deleted"),
                        ],
                        default="active",
                        max_length=16,
                    ),
                ),
                ("is_staff", models.BooleanField(default=False)),
                ("time_zone", models.CharField(default="UTC", max_length=64)),
                ("session_epoch", models.PositiveIntegerField(default=0)),
                ("created_at", models.DateTimeField()),
                ("seal", models.CharField(editable=False, max_length=80, null=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        django.db.models.functions.text.Lower("email"),
                        name="human_email_unique_in_any_case",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("status__in", ["active", "suspended", "deleted"])),
                        name="human_status",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Agent",
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
                    "status",
                    models.CharField(
                        choices=[
                            ("unclaimed", "Unclaimed"),
                            ("active", "Active"),
                            ("suspended", "Suspended"),
                            ("revoked", "Revoked"),
                            ("expired", "Expired"),
                        ],
                        max_length=16,
                    ),
                ),
                ("jkt", models.CharField(max_length=43, unique=True)),
                ("public_jwk", models.JSONField()),
                ("name", models.CharField(max_length=80)),
                ("description", models.CharField(blank=True, max_length=500)),
                ("model_origin", models.CharField(blank=True, max_length=255)),
                ("manifest", models.TextField()),
                ("manifest_sha256", models.CharField(max_length=64)),
                ("capabilities", models.JSONField()),
                ("expires_at", models.DateTimeField()),
                ("claim_number", models.PositiveIntegerField(default=1)),
                ("claim_expires_at", models.DateTimeField(null=True)),
                ("claim_failures", models.PositiveSmallIntegerField(default=0)),
                ("created_at", models.DateTimeField()),
                (
                    "human",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="agents",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                ("suspended_by_admin", models.BooleanField(default=False)),
                ("suspended_by_owner", models.BooleanField(null=True)),
                ("suspensions", models.PositiveIntegerField(null=True)),
                ("seal", models.CharField(editable=False, max_length=80, null=True)),
            ],
            options={
                "indexes": [
                    # The jobs look for expired agents every half minute.
                    models.Index(fields=["status", "expires_at"], name="agent_status_expires")
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "status__in",
                                ["unclaimed", "active", "suspended", "revoked", "expired"],
                            )
                        ),
                        name="agent_status",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(
                                ("human__isnull", False), ("status__in", ["active", "suspended"])
                            ),
                            models.Q(("human__isnull", True), ("status", "unclaimed")),
                            ("status__in", ["revoked", "expired"]),
                            _connector="OR",
                        ),
                        name="agent_owned_unless_unclaimed",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="EnrolmentCode",
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
                ("lookup", models.CharField(max_length=8, unique=True)),
                ("digest", models.BinaryField(max_length=32)),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("failures", models.PositiveSmallIntegerField(default=0)),
                ("used_at", models.DateTimeField(null=True)),
                (
                    "agent",
                    models.OneToOneField(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to="registry.agent",
                    ),
                ),
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
            name="IdempotencyRecord",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("caller", models.CharField(max_length=64)),
                ("route", models.CharField(max_length=80)),
                ("key", models.CharField(max_length=255)),
                ("body_sha256", models.BinaryField(max_length=32)),
                ("status", models.PositiveSmallIntegerField(default=0)),
                ("body", models.JSONField(default=dict)),
                ("token_jti", models.CharField(blank=True, max_length=64)),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField(db_index=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("caller", "route", "key"), name="idempotency_one_answer"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ServiceProvider",
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
                ("slug", models.SlugField(max_length=80, unique=True)),
                ("name", models.CharField(max_length=80)),
                ("audience", models.CharField(max_length=255, unique=True)),
                ("allowed", models.JSONField(default=list)),
                ("is_auditor", models.BooleanField(default=False)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("active", "Active"),
                            ("suspended", "Suspended"),
                            ("revoked", "Revoked"),
                        ],
                        default="active",
                        max_length=16,
                    ),
                ),
                ("created_at", models.DateTimeField()),
                ("require_nonce", models.BooleanField(default=False)),
                ("suspensions", models.PositiveIntegerField(null=True)),
                ("seal", models.CharField(editable=False, max_length=80, null=True)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("status__in", ["active", "suspended", "revoked"])),
                        name="service_provider_status",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Grant",
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
                    "status",
                    models.CharField(
                        choices=[
                            ("pending", "Pending"),
                            ("approved", "Approved"),
                            ("denied", "Denied"),
                            ("withdrawn", "Withdrawn"),
                            ("suspended", "Suspended"),
                            ("revoked", "Revoked"),
                            ("expired", "Expired"),
                        ],
                        default="pending",
                        max_length=16,
                    ),
                ),
                ("version", models.PositiveIntegerField(default=1)),
                ("requested_capabilities", models.JSONField()),
                ("requested_envelope", models.JSONField()),
                ("requested_seconds", models.PositiveIntegerField()),
                ("request_digest", models.BinaryField(max_length=32)),
                ("reason", models.CharField(blank=True, max_length=500)),
                ("capabilities", models.JSONField(null=True)),
                ("envelope", models.JSONField(null=True)),
                ("valid_until", models.DateTimeField(null=True)),
                ("deny_reason", models.CharField(blank=True, max_length=500)),
                (
                    "suspension_cause",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("person", "Person"),
                            ("key_rotated", "Key Rotated"),
                            ("manifest_changed", "Manifest Changed"),
                            ("audience_changed", "Audience Changed"),
                            ("allowed_changed", "Allowed Changed"),
                            ("recovery", "Recovery"),
                            ("restored", "Restored"),
                        ],
                        max_length=32,
                    ),
                ),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(null=True)),
                ("ended_at", models.DateTimeField(null=True)),
                ("polled_at", models.DateTimeField(null=True)),
                ("poll_interval", models.PositiveSmallIntegerField(default=2)),
                (
                    "agent",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="grants",
                        to="registry.agent",
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
                (
                    "service_provider",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="grants",
                        to="registry.serviceprovider",
                    ),
                ),
                ("suspended_by_admin", models.BooleanField(default=False)),
                ("suspended_by_owner", models.BooleanField(null=True)),
                ("follows_at", models.DateTimeField(null=True)),
            ],
            options={
                "indexes": [
                    models.Index(fields=["agent", "status"], name="grant_agent_status"),
                    # The jobs look for expired requests and grants every half minute.
                    models.Index(fields=["status", "expires_at"], name="grant_status_expires"),
                    models.Index(fields=["status", "valid_until"], name="grant_status_valid_until"),
                    # A decision reads the counters of all grants that the agent has or had at the
                    # service provider, but none of requests that were never approved.
                    models.Index(
                        condition=models.Q(("capabilities__isnull", False)),
                        fields=["agent", "service_provider"],
                        name="grant_given",
                    ),
                    # How many grants an agent requested within the last hour.
                    models.Index(fields=["agent", "created_at"], name="grant_asked"),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("status", "pending")),
                        fields=("agent", "request_digest"),
                        name="grant_one_identical_pending",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "status__in",
                                [
                                    "pending",
                                    "approved",
                                    "denied",
                                    "withdrawn",
                                    "suspended",
                                    "revoked",
                                    "expired",
                                ],
                            )
                        ),
                        name="grant_status",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("status__in", ["approved", "suspended"]), _negated=True),
                            models.Q(
                                ("capabilities__isnull", False),
                                ("decided_at__isnull", False),
                                ("envelope__isnull", False),
                                ("human__isnull", False),
                                ("valid_until__isnull", False),
                            ),
                            _connector="OR",
                        ),
                        name="grant_approved_is_whole",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="ServiceProviderSecret",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("digest", models.BinaryField(max_length=32, unique=True)),
                ("created_at", models.DateTimeField()),
                ("revoked_at", models.DateTimeField(null=True)),
                (
                    "service_provider",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="secrets",
                        to="registry.serviceprovider",
                    ),
                ),
                ("seal", models.CharField(editable=False, max_length=80, null=True)),
            ],
        ),
        migrations.CreateModel(
            name="Token",
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
                ("jti", models.CharField(max_length=64, unique=True)),
                ("grant_version", models.PositiveIntegerField()),
                ("jkt", models.CharField(max_length=43)),
                ("claims", models.JSONField()),
                ("issued_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("revoked_at", models.DateTimeField(null=True)),
                (
                    "grant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="tokens",
                        to="registry.grant",
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["expires_at"], name="token_expires")],
            },
        ),
        # One row for what all processes share. `manage.py record_settings` writes it.
        migrations.CreateModel(
            name="Installation",
            fields=[
                (
                    "id",
                    models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False),
                ),
                ("fingerprint", models.JSONField(default=dict)),
                ("recorded_at", models.DateTimeField()),
                # The release of the tables (registry/release_compatibility.py), so only `migrate`
                # changes it.
                ("release", models.PositiveIntegerField(db_default=4)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("id", 1)), name="installation_only_one"
                    )
                ],
            },
        ),
        # The version of the subject key that made a human's first `sub` at a service provider. A
        # pair without a row has the version `legacy`.
        migrations.CreateModel(
            name="PairwiseSubject",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("key_version", models.CharField(max_length=16)),
                (
                    "human",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "service_provider",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="registry.serviceprovider",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("human", "service_provider"), name="pairwise_subject_once"
                    )
                ],
                "indexes": [models.Index(fields=["key_version"], name="pairwise_subject_version")],
            },
        ),
    ]
