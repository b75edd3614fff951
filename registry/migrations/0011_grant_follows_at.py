"""When a grant was approved that follows another one: its rate begins without a burst."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0010_whose_suspension")]

    operations = [migrations.AddField("grant", "follows_at", models.DateTimeField(null=True))]
