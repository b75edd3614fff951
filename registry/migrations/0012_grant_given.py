"""A decision reads the counters of an agent's grants at a service provider: by index, past requests that were never approved."""

from django.db import migrations, models

from audit.db.indexes import AddIndexBesideWriters


class Migration(migrations.Migration):
    # PostgreSQL builds an index beside writers outside a transaction alone.
    atomic = False
    dependencies = [("registry", "0011_grant_follows_at")]

    operations = [
        AddIndexBesideWriters(
            "grant",
            models.Index(
                condition=models.Q(("capabilities__isnull", False)),
                fields=["agent", "service_provider"],
                name="grant_given",
            ),
        )
    ]
