"""Whether a service provider asks for server nonces in proofs."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name="serviceprovider",
            name="require_nonce",
            field=models.BooleanField(default=False),
        ),
    ]
