from django.db import migrations

from audit.db.triggers import append_only


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial")]

    operations = [
        append_only("audit_event"),
        append_only("audit_leaf", unique=("leaf_index", "event_id")),
        # Deleting an opening is erasure; changing one would be a lie.
        append_only("audit_opening", deletable=True),
    ]
