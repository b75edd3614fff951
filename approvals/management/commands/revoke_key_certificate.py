"""`manage.py revoke_key_certificate SERIAL`: refuse permanently all that a certified key signed.

Here and not in kms: it shows first what ends, as the page does, and kms may not import approvals.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from approvals.management.destructive_action_prompt import ask
from audit.management.base_commands import OPERATOR, JsonCommand
from kms.process_key_certificates import revoke_certificate


class Command(JsonCommand):
    help = (
        "Revoke the certificate of one process's key: everything that the key signed is refused "
        "permanently."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "serial", help="as the control room and the event kms.key.certified show it"
        )
        parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")

    def act(self, **options: Any) -> Mapping[str, Any]:
        if not options["yes"]:
            ask(self, "key_certificate", serial=options["serial"])
        row = revoke_certificate(serial=options["serial"], actor=OPERATOR, now=timezone.now())
        return {
            "serial": str(row.serial),
            "kid": row.kid,
            "instance": row.instance,
            "state": row.state,
        }

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield f"Revoked the certificate {result['serial']} of {result['instance']}."
