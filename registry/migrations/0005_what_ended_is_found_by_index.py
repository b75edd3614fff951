"""The jobs look every half minute for agents and grants that came to their end: by index, not through all rows."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0004_humans_can_be_deleted")]

    operations = [
        migrations.AddIndex(
            model_name="agent",
            index=models.Index(fields=["status", "expires_at"], name="agent_status_expires"),
        ),
        migrations.AddIndex(
            model_name="grant",
            index=models.Index(fields=["status", "valid_until"], name="grant_status_valid_until"),
        ),
    ]
