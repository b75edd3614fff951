"""Notifications that another person has decided on a request."""

from django.db import migrations, models


class Migration(migrations.Migration):
    beside_older_code = "The column stays, only its choices change. Release 4 has no such table."
    dependencies = [
        ("approvals", "0014_human_sessions"),
    ]

    operations = [
        migrations.AlterField(
            model_name="notification",
            name="what",
            field=models.CharField(
                choices=[
                    ("request", "Request"),
                    ("request_ends", "Request Ends"),
                    ("confirmation", "Confirmation"),
                    ("decided", "Decided"),
                    ("decided_payment", "Decided Payment"),
                    ("passkey_added", "Passkey Added"),
                    ("passkey_removed", "Passkey Removed"),
                    ("recovery_begun", "Recovery Begun"),
                    ("channel_changed", "Channel Changed"),
                ],
                max_length=16,
            ),
        ),
    ]
