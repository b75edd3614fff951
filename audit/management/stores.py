"""The store that commands work on."""

from django.conf import settings
from django.core.management.base import CommandError

from audit.stores import Store, store_at


def the_store() -> Store:
    """Where settings say the log's copies stand. Raises CommandError where they do not."""
    if not settings.AUDIT_STORE:
        raise CommandError("AUDIT_STORE names no store: file:<path> or s3://<bucket>/<prefix>.")
    return store_at(settings.AUDIT_STORE)
