"""Signing keys, the certificates of short-lived keys, and seals that have ended."""

import django.db.models.deletion
from django.db import migrations, models

import audit.new_ids
from audit.db.trigger_operations import append_only, keep_ended, state_machine


class Migration(migrations.Migration):
    initial = True

    replaces = [
        ("kms", "0001_initial"),
        ("kms", "0002_states"),
        ("kms", "0003_introductions"),
        ("kms", "0004_certificates"),
        ("kms", "0005_seals"),
    ]
    # By its former name, so that `migrate` refuses a database from before release 4
    # (docs/upgrade.md).
    dependencies = [("audit", "0011_openings_of_new_events")]

    operations = [
        migrations.CreateModel(
            name="Key",
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
                ("kid", models.CharField(max_length=64, unique=True)),
                (
                    "purpose",
                    models.CharField(
                        choices=[("token", "Token"), ("audit", "Audit"), ("receipt", "Receipt")],
                        max_length=16,
                    ),
                ),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("next", "Next"),
                            ("active", "Active"),
                            ("retired", "Retired"),
                            ("disabled", "Disabled"),
                        ],
                        max_length=16,
                    ),
                ),
                ("uri", models.CharField(max_length=512)),
                ("algorithm", models.CharField(max_length=16)),
                ("public_jwk", models.JSONField()),
                ("published_at", models.DateTimeField()),
                ("active_from", models.DateTimeField()),
                ("retired_at", models.DateTimeField(null=True)),
                ("needed_until", models.DateTimeField(null=True)),
                ("disabled_at", models.DateTimeField(null=True)),
                ("introduction", models.TextField(blank=True, db_default="", default="")),
                ("seal", models.CharField(editable=False, max_length=80, null=True)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("purpose__in", ["token", "audit", "receipt"])),
                        name="key_purpose",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("state__in", ["next", "active", "retired", "disabled"])
                        ),
                        name="key_state",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("state", "active")),
                        fields=("purpose",),
                        name="key_one_active_per_purpose",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("state", "next")),
                        fields=("purpose",),
                        name="key_one_next_per_purpose",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("state", "retired"), _negated=True),
                            ("retired_at__isnull", False),
                            _connector="OR",
                        ),
                        name="key_retired_has_its_time",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("disabled_at__isnull", False), ("state", "disabled")),
                            models.Q(
                                models.Q(("state", "disabled"), _negated=True),
                                ("disabled_at__isnull", True),
                            ),
                            _connector="OR",
                        ),
                        name="key_disabled_has_its_time",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="KeyCertificate",
            fields=[
                (
                    "serial",
                    models.UUIDField(
                        default=audit.new_ids.new_id,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("kid", models.CharField(max_length=64, unique=True)),
                (
                    "state",
                    models.CharField(
                        choices=[("certified", "Certified"), ("revoked", "Revoked")], max_length=16
                    ),
                ),
                ("instance", models.CharField(max_length=128)),
                ("jws", models.TextField()),
                ("not_before", models.DateTimeField()),
                ("not_after", models.DateTimeField(db_index=True)),
                ("usable_from", models.DateTimeField()),
                ("revoked_at", models.DateTimeField(null=True)),
                (
                    "issuer",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="certificates",
                        to="kms.key",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("revoked_at__isnull", True), ("state", "certified")),
                            models.Q(("revoked_at__isnull", False), ("state", "revoked")),
                            _connector="OR",
                        ),
                        name="certificate_revoked_has_its_time",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="EndedSeal",
            fields=[
                ("seal", models.CharField(max_length=80, primary_key=True, serialize=False)),
            ],
        ),
        # The row exists while rows without a seal still count: from an upgrade of an installation
        # older than seals until `seal_rows` has run.
        migrations.CreateModel(
            name="SealsPending",
            fields=[
                (
                    "id",
                    models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("id", 1)), name="seals_pending_only_one"
                    )
                ],
            },
        ),
        state_machine(
            "kms_key",
            "state",
            initial=["next", "active"],
            transitions={
                "next": ["active", "disabled"],
                "active": ["retired", "disabled"],
                "retired": ["disabled"],
            },
        ),
        state_machine(
            "kms_keycertificate",
            "state",
            initial=["certified"],
            transitions={"certified": ["revoked"]},
        ),
        # A seal that was removed or replaced must never count again.
        append_only("kms_endedseal", unique=["seal"]),
        keep_ended("kms_key", "seal", into="kms_endedseal"),
    ]
