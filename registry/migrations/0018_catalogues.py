"""The versions of service providers' catalogues."""

import django.db.models.deletion
from django.db import migrations, models

import audit.new_ids
from audit.db.trigger_operations import keep_ended, state_machine


class Migration(migrations.Migration):
    dependencies = [("registry", "0002_squashed_0017_triggers"), ("kms", "0005_seals")]

    operations = [
        migrations.CreateModel(
            name="CatalogueVersion",
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
                ("version", models.PositiveIntegerField()),
                ("document", models.TextField()),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("proposed", "Proposed"),
                            ("approved", "Approved"),
                            ("refused", "Refused"),
                            ("withdrawn", "Withdrawn"),
                            ("replaced", "Replaced"),
                        ],
                        default="proposed",
                        max_length=16,
                    ),
                ),
                ("proposed_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(null=True)),
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
                        fields=("service_provider", "version"), name="catalogue_version_once"
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("status", "approved")),
                        fields=("service_provider",),
                        name="catalogue_one_approved",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("status", "proposed")),
                        fields=("service_provider",),
                        name="catalogue_one_proposed",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("decided_at", None), ("status", "proposed")),
                            models.Q(
                                ("decided_at__isnull", False),
                                ("status__in", ["approved", "refused", "withdrawn", "replaced"]),
                            ),
                            _connector="OR",
                        ),
                        name="catalogue_status",
                    ),
                ],
            },
        ),
        state_machine(
            "registry_catalogueversion",
            "status",
            initial=["proposed"],
            transitions={
                "proposed": ["approved", "refused", "withdrawn"],
                "approved": ["replaced"],
            },
        ),
        keep_ended("registry_catalogueversion", "seal", into="kms_endedseal"),
    ]
