from django.db import migrations, models

from audit.db.triggers import append_only


class Migration(migrations.Migration):
    dependencies = [("verifier", "0002_states")]

    operations = [
        migrations.CreateModel(
            name="StateChange",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("position", models.BigIntegerField(db_index=True)),
                ("subject", models.CharField(max_length=16)),
                ("subject_id", models.CharField(max_length=64)),
                ("at", models.DateTimeField()),
            ],
        ),
        append_only("verifier_statechange", deletable=True),
    ]
