"""The language in which a person reads pages, signs, and gets mail."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0019_approvers")]

    operations = [
        migrations.AddField("human", "language", models.CharField(max_length=16, null=True)),
    ]
