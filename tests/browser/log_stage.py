"""Sets up the pages about the log; run by `tests.browser.stage`."""

from datetime import timedelta


def sign_log(email: str) -> dict[str, str]:
    """Two checkpoints, a copy, a witness, an archived range; one numbered event, one waiting."""
    from django.db import transaction

    from audit import kinds
    from audit.checkpoints.signing import checkpoint_log
    from audit.models import Checkpoint, CheckpointCopy, Cosignature, Segment
    from audit.services import record, seal_audit
    from tests.browser.stage import Stage

    stage = Stage(email)

    def happen() -> None:
        with transaction.atomic():
            record(
                kind=kinds.HUMAN_CHANGED, actor=stage.alice, at=stage.now, human_id=stage.human.pk
            )

    # The second run uses a clock that was set back, which makes it sign at once.
    for ago in (timedelta(0), timedelta(seconds=1)):
        seal_audit(now=stage.now)
        checkpoint_log(now=stage.now - ago)
        happen()
    seal_audit(now=stage.now)
    happen()
    for row in Checkpoint.objects.all():
        CheckpointCopy.objects.create(checkpoint=row, store="s3://example-log/agentauth", at=row.at)
    oldest = Checkpoint.objects.order_by("size").first()
    assert oldest is not None
    Cosignature.objects.create(
        checkpoint=oldest, witness="witness.harbour.example", line="x", at=oldest.at
    )
    Segment.objects.create(first=0, end=oldest.size, manifest_sha256=bytes(32), at=oldest.at)
    return {}


def tamper(reason: str) -> dict[str, str]:
    """An attacker with database access: alters an event of the newest page, and the head."""
    from audit.models import Event, Head
    from audit.tests.tampering import triggers_lifted

    with triggers_lifted():
        told = Event.objects.filter(human_id__isnull=False, leaf__isnull=False).order_by("-id")[1]
        Event.objects.filter(pk=told.pk).update(reason=reason)
        head = Head.objects.get()
        Head.objects.update(peaks=bytes(head.peaks)[::-1])
    return {}


ACTS = {"sign_log": sign_log, "tamper": tamper}
