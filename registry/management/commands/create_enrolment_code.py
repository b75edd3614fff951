"""`create_enrolment_code --human EMAIL`: a one-time code to register one agent as theirs."""

from collections.abc import Mapping
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from agentauth.protocol.encoding import timestamp
from audit.management.base_commands import OperatorCommand, operator_of
from registry.models import Human
from registry.services.enrolment_codes import create_enrolment_code


class Command(OperatorCommand):
    help = "Create an enrolment code for a human: for one agent, valid for 15 minutes."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--human", required=True, metavar="EMAIL")

    def act(self, **options: Any) -> Mapping[str, Any]:
        human = Human.objects.filter(email__iexact=options["human"]).first()
        if human is None:
            raise CommandError("No human has this e-mail address.")
        row, code = create_enrolment_code(
            human=human, actor=operator_of(options), now=timezone.now()
        )
        return {"code": code, "expires_at": timestamp(row.expires_at)}
