"""The version of the subject key that each pair of person and service provider began with. Pairs without a row: `legacy`."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0007_release")]

    operations = [
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
        )
    ]
