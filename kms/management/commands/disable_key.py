"""`manage.py disable_key KID`: refuse everything a key signed, at once and for good."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from agentauth.protocol.encoding import timestamp
from audit.management.json_output import OPERATOR, JsonCommand
from kms.models import Key
from kms.services import disable_key

_KID = re.compile(r"-[A-Za-z0-9_-]{42}")


class Command(JsonCommand):
    help = "Refuse everything a key signed, from now on and for good: it may be known to someone else."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("kid")

    def run_from_argv(self, argv: list[str]) -> None:
        # One kid in 64 begins with a hyphen, and in an emergency nobody thinks of `--`. What this matches is no option.
        kids = [each for each in argv[2:] if _KID.fullmatch(each)]
        super().run_from_argv([*(each for each in argv if each not in {*kids, "--"}), "--", *kids])

    def act(self, **options: Any) -> Mapping[str, Any]:
        key = disable_key(kid=options["kid"], actor=OPERATOR, now=timezone.now())
        return {"kid": key.kid, "purpose": key.purpose, "state": key.state}

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield f"Disabled the {result['purpose']} key {result['kid']}."
        others = Key.objects.filter(purpose=result["purpose"])
        if not others.filter(state=Key.State.ACTIVE).exists():
            following = others.filter(state=Key.State.NEXT).first()
            ends = (
                f"from {timestamp(following.active_from)} on" if following else "after manage.py ensure_keys"
            )
            yield f"Nothing signs for this purpose now; it does again {ends}."
