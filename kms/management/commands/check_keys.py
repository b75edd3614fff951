"""`manage.py check_keys`: ask each living key's backend for its public key and a signature."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from audit.management.base_commands import JsonCommand
from kms.key_health import inspect_keys


class Command(JsonCommand):
    help = (
        "Ask the key backend of each key in use for its public key and a signature; exit 1 and "
        "say what is wrong."
    )
    checks_settings = checks_hold = False
    ok = False

    def handle(self, *args: Any, **options: Any) -> None:
        super().handle(*args, **options)
        if not self.ok:
            sys.exit(1)

    def act(self, **options: Any) -> Mapping[str, Any]:
        found = inspect_keys()
        bad = {
            finding.kid or finding.purpose: finding.problem for finding in found if finding.problem
        }
        self.ok = not bad
        return {
            "ok": self.ok,
            "good": [finding.kid for finding in found if not finding.problem],
            "bad": bad,
        }

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        for kid in result["good"]:
            yield f"{kid}: ok"
        for name, problem in result["bad"].items():
            yield f"{name}: {problem}"
