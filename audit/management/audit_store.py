"""The external store named by AUDIT_STORE, for management commands; CommandError without one."""

from django.core.management.base import CommandError

from audit.checkpoints.log_breaks import log_store
from audit.stores import Store


def the_store() -> Store:
    """The store in AUDIT_STORE. Raises CommandError if it is not set."""
    store = log_store()
    if store is None:
        raise CommandError(
            "AUDIT_STORE is not set: set it to file:<path> or s3://<bucket>/<prefix>."
        )
    return store
