"""`manage.py verify_audit`: prove the stored log and the grants, or report what was changed."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils import timezone
from django.utils.module_loading import import_string

from audit.archive.archive_verification import prove_archive
from audit.checkpoints.checkpoint_copies import ContradictedError
from audit.checkpoints.log_breaks import (
    check_breaks,
    lineage,
    seen_from_log,
    seen_store,
    shown_break,
)
from audit.checkpoints.signed_checkpoint_reading import (
    Anchor,
    read_any_anchor,
    read_stores,
    stored_anchors,
    stores_not_read,
)
from audit.management.base_commands import JsonCommand
from audit.models import LogBreak, QueueEntry
from audit.stores.store_factory import store_at
from audit.verify.incremental_verification import RUNS, verify_on
from audit.verify.unknown_store_objects import strange_keys
from audit.verify.verification import Verdict

# In VAR_DIR.
STATE = "audit-verified.json"
_CONTRADICTED = {
    "grant": "GRANT {} WAS CHANGED",
    "person": "PERSON {} CONTRADICTS THE LOG",
    "receipt": "THE RECEIPT ABOUT {} WAS CHANGED",
    "row": "ROW {} WAS CHANGED",
}


class Command(JsonCommand):
    help = (
        "Verify the audit log, the grants by their receipts, and other rows by their seals; exit "
        "1 and name what was changed."
    )
    checks_settings = checks_hold = False
    whole = False
    remark = ""
    unaccepted: list[str] = []

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
            help="verify the archive in this store, and not the events in the database",
        )

        parser.add_argument(
            "--store",
            dest="stores",
            action="append",
            default=[],
            metavar="URI",
            help="also compare the log with the checkpoints in this store",
        )
        parser.add_argument(
            "--full", action="store_true", help="check everything, not only what is new"
        )
        parser.add_argument(
            "--state",
            type=Path,
            metavar="FILE",
            help="the file that records how far the log was proved (default: in VAR_DIR)",
        )
        parser.add_argument(
            "--runs",
            type=_positive,
            default=RUNS,
            metavar="N",
            help="check each older event again once in N runs (default: %(default)s)",
        )
        parser.add_argument(
            "--accept-break",
            dest="accepted",
            action="append",
            default=[],
            metavar="BREAK",
            help="accept this break of the log, as this command prints it; repeatable",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        super().handle(*args, **options)
        if not self.whole:
            sys.exit(1)

    def act(self, **options: Any) -> Mapping[str, Any]:
        now = timezone.now()
        old = [_from_file(options["checkpoint"], now)] if options["checkpoint"] else []
        if options["archive"]:
            store = store_at(options["archive"])
            breaks = lineage(store)
            stores = [seen_from_log(store, breaks)]
            verdict = prove_archive(store=stores[0], now=now, anchors=old)
            kept, self.remark, others, found = False, "", [], []
        else:
            named, breaks = options["stores"], list(LogBreak.objects.order_by("name"))
            stores = [seen_store(uri) for uri in dict.fromkeys([*read_stores(), *named])]
            verdict, kept, self.remark = verify_on(
                state=options["state"] or settings.VAR_DIR / STATE,
                anchors=lambda size: chain(old, stored_anchors(now=now, since=size, others=named)),
                now=now,
                full=options["full"] or bool(named),
                runs=options["runs"],
            )
            verdict = _with_breaks(verdict, breaks)
            others = stores_not_read(named)
            found = list(import_string(settings.AUDIT_GRANTS)(now=now))
        changed = [each for each in found if not each.disabled_at]
        # Also people and the subjects of receipts: readers of this member expect them in it.
        grants = {each.subject: each.problem for each in changed if not each.table}
        rows = {f"{each.table} {each.subject}": each.problem for each in changed if each.table}
        strange = [key for each in stores for key in strange_keys(each, since=verdict.checked_from)]
        self.unaccepted = [
            shown_break(row) for row in breaks if shown_break(row) not in options["accepted"]
        ]
        self.whole = verdict.ok and not self.unaccepted and not changed
        shown = [shown_break(row) for row in breaks]
        return asdict(verdict) | {
            "breaks": shown,
            "contradicted_grants": grants,
            "contradicted_rows": rows,
            "contradictions": [
                {
                    "kind": each.kind,
                    "id": each.subject,
                    "table": each.table,
                    "problem": each.problem,
                }
                for each in changed
            ],
            "grants_of_disabled_keys": {
                each.subject: each.disabled_at for each in found if each.disabled_at
            },
            "state_kept": kept,
            "other_stores": others,
            "strange": strange,
        }

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        for each in result["breaks"]:
            name, size, _root = each.split(":")
            yield (
                f"THE LOG BREAKS after {size} events: a backup was restored, later events are "
                "lost here, and the log continues as"
                f" {name}."
                + (
                    f" To accept exactly this: --accept-break {each}"
                    if each in self.unaccepted
                    else " Accepted."
                )
            )
        yield from self._warnings(result)
        if options["archive"]:
            yield self._of_archive(result)
        elif result["ok"]:
            yield (
                f"The log is whole: {result['tree_size']} events, root {result['root_hash']}; "
                f"{QueueEntry.objects.count()} more wait for their number."
            )
            if result["erased"]:
                yield (
                    f"{result['erased']} texts that events committed to were erased, and the log "
                    "records that."
                )
            yield from self._extent(result)
            if result["disabled_key_sizes"]:
                yield (
                    f"Checkpoints of {result['disabled_key_sizes']} sizes match, but prove "
                    "nothing by themselves: they were signed by a key that was disabled on "
                    f"{result['disabled_at']}. That is not tampering. A valid key signed "
                    f"the first {result['signed_size']} events."
                )
        else:
            yield (
                f"THE LOG WAS TAMPERED WITH at {result['first_bad']}. {result['problem']} The "
                f"{result['tree_size']} "
                "events before are whole. Keep the database as it is, and compare it with a "
                "backup from before the "
                "change."
            )

    def _of_archive(self, result: Mapping[str, Any]) -> str:
        if result["ok"]:
            return (
                f"The archive is whole: {result['tree_size']} events, root {result['root_hash']}."
            )
        if result["disabled_at"]:
            return (
                f"The archive is not proved from leaf {result['first_bad']} on. {result['problem']}"
            )
        return (
            f"THE ARCHIVE IS NOT WHOLE from leaf {result['first_bad']} on. {result['problem']} The "
            f"{result['tree_size']} events before are proved."
        )

    def _warnings(self, result: Mapping[str, Any]) -> Iterator[str]:
        for key in result["strange"]:
            yield (
                f"The store holds {key}, which the log did not write. It is ignored: find out who "
                "wrote it."
            )
        for each in result["contradictions"]:
            place = " ".join(filter(None, [each["table"], each["id"]]))
            yield f"{_CONTRADICTED[each['kind']].format(place)}: {each['problem']}."
        for grant, at in result["grants_of_disabled_keys"].items():
            yield (
                f"Grant {grant} permits nothing: the key that signed its receipt was disabled on "
                f"{at}. That is not tampering. Its owner should revoke it, and the agent should "
                "ask again."
            )

    def _extent(self, result: Mapping[str, Any]) -> Iterator[str]:
        """What this run checked, and what it did not."""
        if result["checked_from"]:
            yield (
                f"Checked the events from {result['checked_from']} on. Those before were proved "
                f"and signed earlier; {result['rechecked_from']} to {result['rechecked_to'] - 1} "
                "of them were checked again. --full checks all."
            )
        if not result["state_kept"]:
            yield "The next run starts from the first event."
        if self.remark:
            yield self.remark
        for name in result["other_stores"]:
            yield (
                f"Checkpoints were also copied to {name}, which was not read. To compare them, "
                "add --store URI."
            )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _with_breaks(verdict: Verdict, breaks: Sequence[LogBreak]) -> Verdict:
    """The verdict, failed if the log is whole but a break contradicts its record."""
    try:
        if verdict.ok:
            check_breaks(breaks)
    except ContradictedError as error:
        return replace(verdict, ok=False, first_bad=0, problem=error.description)
    return verdict


def _from_file(path: str, now: datetime) -> Anchor:
    try:
        note = Path(path).read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}.") from error
    return read_any_anchor(note, place=path, now=now)
