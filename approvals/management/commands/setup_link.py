"""`setup_link`: prints the one-time link for the first admin, or for an invited human."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import AgentAuthError
from approvals.services.people import admin_exists, create_setup_link
from audit.services import Actor


class Command(BaseCommand):
    help = "Print a one-time link for the first admin; with --email, for an invited human."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--email", default="", help="invite the human with this address")
        parser.add_argument("--admin", action="store_true", help="the invited human becomes an admin")
        parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
        parser.add_argument(
            "--first-start", action="store_true", help="say nothing where an admin exists already"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["first_start"] and admin_exists():
            return
        try:
            link = create_setup_link(
                email=options["email"],
                is_staff=options["admin"],
                actor=Actor("system", "setup_link"),
                now=timezone.now(),
            )
        except AgentAuthError as error:
            raise CommandError(error.description) from error
        if options["json"]:
            self.stdout.write(json.dumps({"url": link.url, "expires_at": timestamp(link.expires_at)}))
            return
        self.stdout.write(f"Open this link once, until {link.expires_at:%H:%M} UTC, and make your passkey:")
        self.stdout.write(f"  {link.url}")
        self.stdout.write("A new one: python manage.py setup_link")
