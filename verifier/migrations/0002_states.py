from django.db import migrations

from audit.db.triggers import state_machine


class Migration(migrations.Migration):
    dependencies = [("verifier", "0001_initial")]

    operations = [
        state_machine(
            "verifier_confirmation",
            "status",
            initial=["pending"],
            transitions={
                "pending": ["confirmed", "denied", "expired"],
                "confirmed": ["consumed", "expired"],
            },
        ),
    ]
