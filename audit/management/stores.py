"""The store that commands work on."""

from django.core.management.base import CommandError

from audit.breaks import log_store
from audit.stores import Store


def the_store() -> Store:
    """Where settings say the log's copies stand. Raises CommandError where they do not."""
    store = log_store()
    if store is None:
        raise CommandError("AUDIT_STORE names no store: file:<path> or s3://<bucket>/<prefix>.")
    return store
