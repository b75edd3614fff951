"""`expire`: record what has come to its end. The Celery task and the jobs loop call the same service."""

from collections.abc import Mapping
from typing import Any

from django.utils import timezone

from registry.management.json_output import JsonCommand
from registry.services.expiry import expire_everything


class Command(JsonCommand):
    help = "Record what has expired and forget what is only remembered."

    def act(self, **options: Any) -> Mapping[str, Any]:
        return expire_everything(now=timezone.now())
