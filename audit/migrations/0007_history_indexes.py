from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audit", "0006_whose_leaf")]

    operations = [
        migrations.AddIndex(
            "event",
            models.Index(
                condition=models.Q(("outcome", "success"), _negated=True),
                fields=["outcome", "id"],
                name="event_not_success",
            ),
        ),
        migrations.AddIndex(
            "leaf",
            models.Index(
                condition=models.Q(("agent_id__isnull", False)),
                fields=["agent_id", "leaf_index"],
                name="leaf_agent",
            ),
        ),
        migrations.AddIndex(
            "leaf",
            models.Index(
                condition=models.Q(("human_id__isnull", False)),
                fields=["human_id", "leaf_index"],
                name="leaf_human",
            ),
        ),
        migrations.AddIndex(
            "leaf",
            models.Index(
                condition=models.Q(("kind", "verifier.decision.allowed"), _negated=True),
                fields=["kind", "leaf_index"],
                name="leaf_kind",
            ),
        ),
    ]
