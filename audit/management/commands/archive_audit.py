"""`manage.py archive_audit`: archive every event that a checkpoint covers, and prove it there."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.utils import timezone

from audit.archive.segment_writing import archive_audit
from audit.checkpoints.checkpoint_copies import check_store_unchanged
from audit.management.audit_store import the_store
from audit.management.base_commands import JsonCommand


class Command(JsonCommand):
    help = "Archive the signed events that are not in the archive yet, segment by segment."

    def act(self, **options: Any) -> Mapping[str, Any]:
        store, ranges = the_store(), []
        check_store_unchanged()
        while found := archive_audit(now=timezone.now(), store=store):
            ranges.append(found)
        return {
            "archived_from": ranges[0].first if ranges else None,
            "archived_to": ranges[-1].end if ranges else None,
            "segments": len(ranges),
        }

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        if result["segments"]:
            yield (
                f"Archived leaves {result['archived_from']} to {result['archived_to'] - 1} in "
                f"{result['segments']} "
                "segments, and read them back."
            )
        else:
            yield "There is nothing to archive: no checkpoint was signed since the last segment."
