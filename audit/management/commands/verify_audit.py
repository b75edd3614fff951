"""`manage.py verify_audit`: prove the stored log, or name the first place where it contradicts itself."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from audit.anchors import Anchor, read_any_anchor, stored_anchors
from audit.archive.proving import prove_archive
from audit.management.json_output import JsonCommand
from audit.models import QueueEntry
from audit.stores import store_at
from audit.verification import verify_log


class Command(JsonCommand):
    help = "Prove the audit log; exit 1 and name the place where it was changed."
    whole = False

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--from",
            dest="checkpoint",
            metavar="FILE",
            help="a checkpoint of an earlier day, as a signed note",
        )

        parser.add_argument(
            "--archive",
            metavar="URL",
            help="prove the archive in this store, and no event of the database",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        super().handle(*args, **options)
        if not self.whole:
            sys.exit(1)

    def act(self, **options: Any) -> Mapping[str, Any]:
        now = timezone.now()
        old = [_from_file(options["checkpoint"], now)] if options["checkpoint"] else []
        if options["archive"]:
            verdict = prove_archive(store=store_at(options["archive"]), now=now, anchors=old)
        else:
            verdict = verify_log(anchors=chain(old, stored_anchors(now=now)))
        self.whole = verdict.ok
        return asdict(verdict)

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        if result["ok"] and options["archive"]:
            yield f"The archive is whole: {result['tree_size']} events, root {result['root_hash']}."
        elif options["archive"]:
            yield (
                f"THE ARCHIVE IS NOT WHOLE from leaf {result['first_bad']} on. {result['problem']} The "
                f"{result['tree_size']} events before are proved."
            )
        elif result["ok"]:
            yield (
                f"The log is whole: {result['tree_size']} events, root {result['root_hash']}; "
                f"{QueueEntry.objects.count()} more wait for their number."
            )
            if result["disabled_key_sizes"]:
                yield (
                    f"Checkpoints of {result['disabled_key_sizes']} sizes fit, but by themselves prove nothing: a key "
                    f"signed them that was disabled since. A key that counts signed the first {result['signed_size']} "
                    "events."
                )
        else:
            yield (
                f"THE LOG WAS TAMPERED WITH at {result['first_bad']}. {result['problem']} The {result['tree_size']} "
                "events before are whole. Keep the database as it is, and compare it with a backup from before the "
                "change."
            )


def _from_file(path: str, now: datetime) -> Anchor:
    try:
        note = Path(path).read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}.") from error
    return read_any_anchor(note, place=path, now=now)
