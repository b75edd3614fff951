import django.db.models.deletion
from django.db import migrations, models

from audit.db.triggers import append_only, when_undone


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0002_append_only"),
    ]

    operations = [
        when_undone(append_only("audit_leaf", unique=("leaf_index", "event_id"))),
        when_undone(append_only("audit_opening", deletable=True)),
        migrations.AddField(
            model_name="head",
            name="peaks",
            field=models.BinaryField(default=b""),
        ),
        migrations.AddField(
            model_name="leaf",
            name="entry",
            field=models.BinaryField(default=b"", max_length=32),
            preserve_default=False,
        ),
        migrations.AlterField(
            model_name="leaf",
            name="event",
            field=models.OneToOneField(
                db_constraint=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="leaf",
                to="audit.event",
            ),
        ),
        migrations.AlterField(
            model_name="opening",
            name="event",
            field=models.ForeignKey(
                db_constraint=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="openings",
                to="audit.event",
            ),
        ),
        migrations.AlterField(
            model_name="queueentry",
            name="event",
            field=models.OneToOneField(
                db_constraint=False,
                on_delete=django.db.models.deletion.PROTECT,
                primary_key=True,
                related_name="queue_entry",
                serialize=False,
                to="audit.event",
            ),
        ),
        migrations.CreateModel(
            name="Checkpoint",
            fields=[
                ("size", models.BigIntegerField(primary_key=True, serialize=False)),
                ("root", models.BinaryField(max_length=32)),
                ("note", models.TextField()),
                ("at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("size__gte", 1)), name="checkpoint_size_positive"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Node",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("level", models.PositiveSmallIntegerField()),
                ("index", models.BigIntegerField()),
                ("hash", models.BinaryField(max_length=32)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("level", "index"), name="node_one_per_place"),
                    models.CheckConstraint(
                        condition=models.Q(("index__gte", 0), ("level__gte", 1)), name="node_place"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Segment",
            fields=[
                ("first", models.BigIntegerField(primary_key=True, serialize=False)),
                ("end", models.BigIntegerField(unique=True)),
                ("manifest_sha256", models.BinaryField(max_length=32)),
                ("at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("end__gt", models.F("first")), ("first__gte", 0)),
                        name="segment_not_empty",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="CheckpointCopy",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("store", models.CharField(max_length=255)),
                ("at", models.DateTimeField()),
                (
                    "checkpoint",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="copies",
                        to="audit.checkpoint",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("checkpoint", "store"), name="copy_one_per_store"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Cosignature",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("witness", models.CharField(max_length=255)),
                ("line", models.TextField()),
                ("at", models.DateTimeField()),
                (
                    "checkpoint",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="cosignatures",
                        to="audit.checkpoint",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("checkpoint", "witness"), name="cosignature_one_per_witness"
                    )
                ],
            },
        ),
    ]
