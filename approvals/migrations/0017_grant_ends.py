"""Notifications that a grant that was used lately ends soon."""

from django.db import migrations, models


class Migration(migrations.Migration):
    beside_older_code = "The column stays, only its choices change. Release 4 has no such table."
    dependencies = [("approvals", "0016_catalogue_purpose")]

    operations = [
        migrations.AlterField(
            model_name="notification",
            name="what",
            field=models.CharField(
                choices=[
                    ("request", "Request"),
                    ("request_ends", "Request Ends"),
                    ("grant_ends", "Grant Ends"),
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
