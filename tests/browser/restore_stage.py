"""Sets up the pages that an administrator meets after a restore; run by `tests.browser.stage`."""


def restore(email: str) -> dict[str, str]:
    """A backup, a lost history in which one grant was used, then the backup restored."""
    from django.db import transaction

    from approvals.tests.database_rollback import restored
    from audit import kinds
    from audit.checkpoints.signing import checkpoint_log
    from audit.services import record, seal_audit
    from registry.models import Grant
    from tests.browser.stage import Stage

    stage = Stage(email)
    used = Grant.objects.filter(status=Grant.Status.APPROVED, agent__human=stage.human).order_by(
        "id"
    )[0]

    def happen() -> None:
        with transaction.atomic():
            record(
                kind=kinds.DECISION_ALLOWED,
                actor=stage.alice,
                at=stage.now,
                grant_id=used.pk,
                agent_id=used.agent_id,
            )

    # Endings before a checkpoint that the backup contains are not repeated.
    seal_audit(now=stage.now)
    checkpoint_log(now=stage.now, at_once=True)
    path = f"/restores/{restored(happen).name}/"
    return {"restore": path, "release": f"{path}release/"}


ACTS = {"restore": restore}
