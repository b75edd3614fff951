"""The role that an invitation gives, if it is not that of an owner (ADR 50)."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("approvals", "0017_grant_ends")]

    operations = [
        migrations.AddField("setupcode", "admin_role", models.CharField(max_length=16, null=True)),
    ]
