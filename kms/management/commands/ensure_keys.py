"""`manage.py ensure_keys`: make the first signing key of every purpose without one. Idempotent."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.utils import timezone

from agentauth.protocol.encoding import timestamp
from audit.management.base_commands import OPERATOR, JsonCommand
from kms.models import Key
from kms.services import ensure_key


class Command(JsonCommand):
    help = "Create the first signing key of every purpose that has none."

    def act(self, **options: Any) -> Mapping[str, Any]:
        now = timezone.now()
        return {
            purpose: ensure_key(purpose=purpose, actor=OPERATOR, now=now).kid
            for purpose in Key.Purpose.values
        }

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        if not options["verbosity"]:
            return
        for key in Key.objects.filter(kid__in=result.values()).order_by("purpose"):
            since = (
                f" signs from {timestamp(key.active_from)} on"
                if key.state == Key.State.NEXT
                else ""
            )
            yield f"{key.purpose}: {key.kid}{since}"
