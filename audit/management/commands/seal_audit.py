"""`manage.py seal_audit`: number every event that waits for its place in the log."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.utils import timezone

from audit.management.json_output import JsonCommand
from audit.services import seal_audit


class Command(JsonCommand):
    help = "Number and link every recorded event that is still waiting."

    def act(self, **options: Any) -> Mapping[str, Any]:
        return {"numbered": seal_audit(now=timezone.now())}

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield f"Numbered {result['numbered']} events."
