"""Logos of service providers: one that waits and one that is approved for each."""

import django.db.models.deletion
from django.db import migrations, models

import audit.new_ids
from audit.db.trigger_operations import keep_ended


class Migration(migrations.Migration):
    dependencies = [("registry", "0022_roles")]

    operations = [
        migrations.CreateModel(
            name="ServiceLogo",
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
                ("image", models.BinaryField()),
                ("sha256", models.CharField(db_index=True, max_length=64)),
                ("proposed_at", models.DateTimeField()),
                ("approved_at", models.DateTimeField(null=True)),
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
                        condition=models.Q(("approved_at", None)),
                        fields=("service_provider",),
                        name="logo_one_proposed",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("approved_at__isnull", False)),
                        fields=("service_provider",),
                        name="logo_one_approved",
                    ),
                ],
            },
        ),
        keep_ended("registry_servicelogo", "seal", into="kms_endedseal"),
    ]
