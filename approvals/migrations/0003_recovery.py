"""Setup codes that recover an account, and challenges for one sensitive act."""

from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("approvals", "0002_receipts_stay"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name="setupcode",
            name="setup_code_kind",
        ),
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
                    ("second_step", "Second Step"),
                ],
                max_length=16,
            ),
        ),
        migrations.AlterField(
            model_name="setupcode",
            name="kind",
            field=models.CharField(
                choices=[
                    ("first_admin", "First Admin"),
                    ("invitation", "Invitation"),
                    ("recovery", "Recovery"),
                ],
                max_length=16,
            ),
        ),
        migrations.AddConstraint(
            model_name="setupcode",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["first_admin", "invitation", "recovery"])),
                name="setup_code_kind",
            ),
        ),
    ]
