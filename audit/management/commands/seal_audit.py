"""`manage.py seal_audit`: number every waiting event, and sign the log up to its end."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.core.management.base import CommandError
from django.utils import timezone

from agentauth.protocol.errors import AgentAuthError
from audit.checkpoints.signing import checkpoint_log, newest_signed
from audit.management.base_commands import JsonCommand
from audit.services import seal_audit


class Command(JsonCommand):
    help = (
        "Number and link every recorded event that is still waiting, and sign the log up to its "
        "end."
    )

    def act(self, **options: Any) -> Mapping[str, Any]:
        now = timezone.now()
        numbered = seal_audit(now=now)
        try:
            checkpoint_log(now=now, at_once=True)
        except AgentAuthError as error:
            raise CommandError(
                f"Numbered {numbered} events, but the log is not signed: {error.description}"
            ) from error
        newest = newest_signed(now=now)
        return {"numbered": numbered, "signed_size": newest.size if newest else 0}

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield f"Numbered {result['numbered']} events. The first {result['signed_size']} are signed."
