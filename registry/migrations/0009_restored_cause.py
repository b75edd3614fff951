"""A grant may be suspended since the database was restored. A choice of words only: no statement reaches the database."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0008_pairwise_subject")]
    # Older code shows the cause it does not know by its name, and resumes such a grant as it resumes any other.
    beside_older_code = (
        "The column stays as it is; older code only displays the new cause by its plain name."
    )

    operations = [
        migrations.AlterField(
            model_name="grant",
            name="suspension_cause",
            field=models.CharField(
                blank=True,
                choices=[
                    ("person", "Person"),
                    ("key_rotated", "Key Rotated"),
                    ("manifest_changed", "Manifest Changed"),
                    ("audience_changed", "Audience Changed"),
                    ("allowed_changed", "Allowed Changed"),
                    ("recovery", "Recovery"),
                    ("restored", "Restored"),
                ],
                max_length=32,
            ),
        ),
    ]
