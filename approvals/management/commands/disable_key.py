"""`manage.py disable_key KID`: refuse everything a key signed, at once and permanently."""

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from approvals.management.destructive_action_prompt import ask
from audit.management.base_commands import OPERATOR, JsonCommand
from kms.services import disable_key

_KID = re.compile(r"-[A-Za-z0-9_-]{42}")


class Command(JsonCommand):
    help = "Disable a key that someone else may know: everything it signed is refused permanently."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("kid")
        parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parse = parser.parse_args

        def parse_args(args: Sequence[str], namespace: None = None) -> Namespace:
            # One kid in 64 begins with a hyphen, and an operator in an emergency forgets `--`. No
            # option matches _KID.
            kids = [each for each in args if _KID.fullmatch(each)]
            others = [each for each in args if each not in {*kids, "--"}]
            return parse([*others, "--", *kids] if kids else others, namespace)

        parser.parse_args = parse_args  # type: ignore[method-assign,assignment]
        return parser

    def act(self, **options: Any) -> Mapping[str, Any]:
        if not options["yes"]:
            ask(self, "key", kid=options["kid"])
        key = disable_key(kid=options["kid"], actor=OPERATOR, now=timezone.now())
        return {"kid": key.kid, "purpose": key.purpose, "state": key.state}

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield f"Disabled the {result['purpose']} key {result['kid']}."
