"""Whether this database was set back, as every process sees it where it looks at the home."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("verifier", "0008_home_back_after")]

    operations = [
        migrations.AddField(
            "home",
            "vouched_for",
            models.CharField(blank=True, db_default="", default="", max_length=128),
        ),
        migrations.AddField("home", "held_at", models.DateTimeField(null=True)),
        migrations.AddField(
            "home", "held_because", models.TextField(blank=True, db_default="", default="")
        ),
        migrations.AddField(
            "home",
            "history",
            models.CharField(blank=True, db_default="", default="", max_length=14),
        ),
    ]
