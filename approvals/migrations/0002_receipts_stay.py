"""Receipts are written once: the database refuses to change or remove one."""

from django.db import migrations

from audit.db.triggers import append_only


class Migration(migrations.Migration):
    dependencies = [("approvals", "0001_initial")]

    operations = [append_only("approvals_receipt", unique=("id", "challenge"))]
