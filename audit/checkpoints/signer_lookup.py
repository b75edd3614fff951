"""The log's signer, named by dotted path in settings because audit imports no other app."""

from datetime import datetime
from typing import cast

from django.conf import settings
from django.utils.module_loading import import_string

from agentauth.protocol.keys import Signer

PURPOSE = "audit"


def audit_signer(*, now: datetime) -> Signer:
    """The key that signs checkpoints at `now`. Raises TemporarilyUnavailableError if none can."""
    return cast("Signer", import_string(settings.AUDIT_SIGNER)(purpose=PURPOSE, now=now))
