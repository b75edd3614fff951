"""How many grants an agent asked for within the hour is read by index."""

from django.db import migrations, models

from audit.db.indexes import AddIndexBesideWriters


class Migration(migrations.Migration):
    # PostgreSQL builds an index beside writers outside a transaction alone.
    atomic = False
    dependencies = [("registry", "0015_expired_suspended")]

    operations = [
        AddIndexBesideWriters(
            "grant",
            models.Index(fields=["agent", "created_at"], name="grant_asked"),
        )
    ]
