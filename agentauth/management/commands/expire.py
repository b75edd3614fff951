"""`expire`: record what has expired and delete what is no longer needed, as the jobs do."""

from collections.abc import Mapping
from typing import Any

from django.utils import timezone

from approvals.services import expiry
from audit.management.base_commands import JsonCommand
from registry.services import expiry as registry_expiry
from verifier.services import expiry as verifier_expiry


class Command(JsonCommand):
    help = "Record what has expired, and delete what is no longer needed."

    def act(self, **options: Any) -> Mapping[str, Any]:
        now = timezone.now()
        return (
            registry_expiry.expire_everything(now=now)
            | verifier_expiry.expire_everything(now=now)
            | expiry.expire_everything(now=now)
        )
