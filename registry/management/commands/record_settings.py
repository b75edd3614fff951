"""`record_settings`: record this environment's settings as those all processes must share."""

from collections.abc import Mapping
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from audit.management.base_commands import OPERATOR, JsonCommand
from registry.services.settings_agreement import fingerprint, record_settings


class Command(JsonCommand):
    help = "Record the settings that all processes must share, from this environment."
    # A held database may need it first, as when Redis was lost too and the new one has another
    # address. The event is numbered in the log that continues.
    checks_settings = checks_hold = False

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--change",
            nargs="+",
            default=[],
            choices=sorted(fingerprint()),
            metavar="SETTING",
            help="the settings to change; any other difference is refused",
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        changed = record_settings(change=options["change"], actor=OPERATOR, now=timezone.now())
        if "PUBLIC_URL" in changed and "SECRET_KEY" not in changed:
            self.tell(
                "If this database is a copy of another installation's, give this one a SECRET_KEY "
                "of its own: with one key, an operator of either can forge sealed rows of both."
            )
        return {"changed": changed, "settings": fingerprint()}
