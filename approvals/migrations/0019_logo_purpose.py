"""One more purpose of a challenge: an administrator approves a logo."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("approvals", "0018_invited_roles")]
    beside_older_code = "The names of choices are in Python alone; the column stays as it is."

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
                    ("release", "Release"),
                    ("resume", "Resume"),
                    ("catalogue", "Catalogue"),
                    ("logo", "Logo"),
                    ("second_step", "Second Step"),
                ],
                max_length=16,
            ),
        )
    ]
