"""What is done before a planned restore, and to grants after it."""

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.test import override_settings

from approvals.tests.cast import drawn_on
from approvals.tests.database_rollback import restored
from audit import kinds
from audit.models import LogBreak
from kms.services import ensure_key
from registry.tests.cast import TESTER
from tests.acts.world import Act, World, act, command


@act("manage.py close_log", kinds.HISTORY_CLOSED, kinds.HISTORY_CLOSED)
def an_operator_closes_the_registry(world: World) -> Act:
    """Waits for the verifiers' leases."""
    name = "close_log"
    ensure_key(purpose="audit", actor=TESTER, now=world.now)

    def run() -> Any:
        return _outside(command(name, "--yes", "--operator", "alice"))()

    return run


@act("POST restores/<str:name>/release/review", kinds.SECOND_STEP_TAKEN)
def an_admin_reviews_grants_to_release(world: World) -> Act:
    path, admin = _closed(world), world.admin
    form = _chosen(world, path)
    return _outside(lambda: admin.client.post(f"{path}review", form))


@act("POST restores/<str:name>/release/statement")
def an_admin_is_asked_to_release_grants(world: World) -> Act:
    path, admin = _closed(world), world.admin
    form = _chosen(world, path)
    page = _outside(lambda: admin.client.post(f"{path}review", form))()
    body = {"grants": str(world.grant.pk), "drawn": drawn_on(page)}
    return _outside(lambda: admin.post(f"{path}statement", body))


@act("POST restores/<str:name>/release/decide", kinds.GRANT_RELEASED)
def an_admin_releases_a_grant(world: World) -> Act:
    options = an_admin_is_asked_to_release_grants(world)().json()["publicKey"]
    path, admin = f"/restores/{LogBreak.objects.get().name}/release/", world.admin
    credential = admin.device.assertion(options)
    return lambda: admin.post(f"{path}decide", {"credential": credential})


def _chosen(world: World, path: str) -> dict[str, str]:
    """The page's form, with the world's grant selected."""
    page = _outside(lambda: world.admin.get(path))()
    return {"grant": str(world.grant.pk), "drawn": drawn_on(page)}


def _closed(world: World) -> str:
    """A restore after a closing, with only the world's grant; sessions end with it."""
    ensure_key(purpose="audit", actor=TESTER, now=world.now)
    assert world.grant.pk
    assert world.admin
    row: LogBreak = _outside(restored)()
    world.admin.sign_in()
    return f"/restores/{row.name}/release/"


def _outside(does: Callable[[], Any]) -> Callable[[], Any]:
    """Run `does` with the same external store each time."""

    def run() -> Any:
        with override_settings(AUDIT_STORE=f"file:{settings.VAR_DIR / 'outside'}"):
            return does()

    return run
