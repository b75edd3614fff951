"""A challenge may be for a break of the log. A choice of words only: no statement reaches the database."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("approvals", "0003_recovery"),
    ]

    beside_older_code = (
        "The column stays as it is; older code never reads a challenge of the new purpose."
    )

    operations = [
        migrations.AlterField(
            model_name="challenge",
            name="purpose",
            field=models.CharField(
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
                    ("second_step", "Second Step"),
                ],
                max_length=16,
            ),
        ),
    ]
