"""What operators do on the command line, administrators with keys, and scheduled jobs."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any
from unittest.mock import patch

from django.conf import settings
from django.test import override_settings

from agentauth.protocol.keys import PrivateKey
from approvals.services.setup_and_sign_in import INVITATION_LIFE
from approvals.services.text_erasure import INVITATION_KEPT
from approvals.tests.notifying import by_mail
from approvals.tests.recovering import DAY, begun
from audit import kinds
from audit.checkpoints.signing import checkpoint_log
from audit.models import RefusalCount
from kms.models import Key, KeyCertificate, SealsPending
from kms.process_key_certificates import certify
from kms.services import ensure_key, promote_due_keys, rotate_key
from registry.models import Grant, ServiceProvider
from registry.services.grants import suspend_grant
from registry.services.service_providers import rotate_secret
from registry.tests.cast import TESTER
from registry.tests.logos import picture
from tests.acts.administrators import unused_invitation
from tests.acts.world import Act, World, act, command, task
from verifier.models import Home
from verifier.services.replay_epoch_keeper import KEEPER, keep_home


@act("manage.py create_service_provider", kinds.SERVICE_PROVIDER_CREATED)
def an_operator_creates_a_service_provider(_world: World) -> Act:
    return command("create_service_provider", "Acme", "--audience", "https://acme.example")


@act(
    "manage.py change_service_provider",
    kinds.SERVICE_PROVIDER_AUDIENCE_CHANGED,
    kinds.SERVICE_PROVIDER_ALLOWED_CHANGED,
    kinds.GRANT_SUSPENDED,
    kinds.GRANT_VERSION_RAISED,
)
def an_operator_moves_a_service_provider(world: World) -> Act:
    """One grant already waits for a person's signature: moving that one only ends its tokens."""
    suspend_grant(
        grant=world.paying, cause=Grant.SuspensionCause.RECOVERY, actor=TESTER, now=world.now
    )
    slug = world.grant.service_provider.slug
    return command(
        "change_service_provider",
        slug,
        "--audience",
        "https://acme.example",
        "--allow",
        "read:calendar",
    )


@act("manage.py change_service_provider", kinds.LOGO_PROPOSED)
def an_operator_uploads_a_logo(world: World) -> Act:
    path = Path(settings.VAR_DIR, "logo.png")
    path.write_bytes(picture())
    return command("change_service_provider", world.provider.slug, "--logo", str(path))


@act("manage.py rotate_service_provider_secret", kinds.SERVICE_PROVIDER_SECRET_ROTATED)
def an_operator_makes_a_further_secret(world: World) -> Act:
    return command("rotate_service_provider_secret", world.provider.slug)


@act("manage.py rotate_service_provider_secret", kinds.SERVICE_PROVIDER_SECRETS_ENDED)
def an_operator_ends_the_earlier_secret(world: World) -> Act:
    rotate_secret(service_provider=world.provider, actor=TESTER, now=world.now)
    return command("rotate_service_provider_secret", world.provider.slug, "--end-previous")


@act("manage.py create_enrolment_code", kinds.ENROLMENT_CODE_CREATED)
def an_operator_makes_an_enrolment_code(world: World) -> Act:
    return command("create_enrolment_code", "--human", world.alice.human.email)


@act("manage.py setup_link", kinds.SETUP_CODE_CREATED)
def an_operator_makes_the_first_link(_world: World) -> Act:
    return command("setup_link")


@act("manage.py setup_link", kinds.RECOVERY_BEGUN)
def an_operator_begins_a_recovery(world: World) -> Act:
    return command("setup_link", "--recover", world.alice.human.email)


@act("manage.py setup_link", kinds.SETUP_CODE_CREATED)
def an_operator_makes_a_recovery_link(world: World) -> Act:
    begun(world.alice.human, world.now - DAY)
    return command("setup_link", "--recover", world.alice.human.email)


@act("manage.py load_demo", kinds.SERVICE_PROVIDER_CREATED)
def a_developer_loads_the_demo(_world: World) -> Act:
    return command("load_demo")


@act("manage.py load_demo", kinds.SERVICE_PROVIDER_SECRET_ROTATED)
def a_developer_who_lost_the_demos_secret_loads_it_again(_world: World) -> Act:
    command("load_demo")()
    Path(settings.VAR_DIR, "demo", "service_provider.json").unlink()
    return command("load_demo")


@act("manage.py ensure_keys", kinds.KEY_ACTIVATED)
def an_operator_makes_the_first_key_of_a_purpose(_world: World) -> Act:
    # The keys for tokens and receipts exist already.
    return command("ensure_keys")


@act("manage.py rotate_key", kinds.KEY_PUBLISHED)
def an_operator_publishes_the_next_key(_world: World) -> Act:
    return command("rotate_key", "token")


@act("manage.py disable_key", kinds.KEY_DISABLED)
def an_operator_disables_a_key(world: World) -> Act:
    return command("disable_key", _replaced(world).kid, "--yes")


def _replaced(world: World) -> Key:
    """A token key that has a successor."""
    key = Key.objects.get(purpose="token")
    rotate_key(purpose="token", actor=TESTER, now=world.now)
    Key.objects.filter(state=Key.State.NEXT).update(active_from=world.past())
    promote_due_keys(now=world.now)
    return key


@act("manage.py revoke_key_certificate", kinds.KEY_CERTIFICATE_REVOKED)
def an_operator_revokes_a_certificate(world: World) -> Act:
    return command("revoke_key_certificate", str(_certified(world).serial), "--yes")


@act("POST admin/kms/keycertificate/ revoke")
def an_admin_chooses_certificates_to_revoke(world: World) -> Act:
    return world.button(_certified(world), "revoke")


@act("POST endings/<str:kind>/<str:shown>", kinds.HUMAN_VERIFIED, kinds.KEY_CERTIFICATE_REVOKED)
def an_admin_revokes_a_certificate(world: World) -> Act:
    return world.admin.ready_to_end(f"/endings/key_certificate/?id={_certified(world).serial}")


def _certified(world: World) -> KeyCertificate:
    return certify(PrivateKey.generate().public, process=1, now=world.now)


@act("manage.py record_settings", kinds.SETTINGS_RECORDED)
def an_operator_records_the_settings(world: World) -> Act:
    assert world.now
    return command("record_settings")


@act("manage.py seal_rows", kinds.SEALS_DEMANDED)
def an_operator_ends_an_upgrade(world: World) -> Act:
    assert world.now
    SealsPending.objects.create()
    return command("seal_rows")


@act("manage.py seal_rows", kinds.ROWS_SEALED)
def an_operator_adopts_a_row(world: World) -> Act:
    ServiceProvider.objects.filter(pk=world.provider.pk).update(seal=None)
    return command("seal_rows", "--adopt")


@act("manage.py replay_cache", kinds.HOME_LEFT)
def an_operator_has_the_verifier_move(world: World) -> Act:
    assert world.now
    return command("replay_cache", "--move-to", "database")


@act("manage.py continue_after_restore", kinds.KEY_ACTIVATED, kinds.HISTORY_CONTINUED)
def an_operator_continues_after_a_restore(world: World) -> Act:
    assert world.now
    return command("continue_after_restore", "--undetected", "--yes", "--operator", "alice")


@act("task verifier.keep_home", kinds.HOME_BEGAN)
def the_verifiers_move_comes_to_its_end(world: World) -> Act:
    command("replay_cache", "--move-to", "database")()
    Home.objects.update(leaving_at=world.past())
    # The keeper saw it leaving a minute ago.
    with patch.object(KEEPER, "clock", lambda: monotonic() - 60):
        keep_home(now=world.now)
    return task("verifier.keep_home")


@act("task kms.promote_due_keys", kinds.KEY_ACTIVATED)
def the_next_keys_time_comes(world: World) -> Act:
    rotate_key(purpose="token", actor=TESTER, now=world.now)
    Key.objects.filter(state=Key.State.NEXT).update(active_from=world.past())
    return task("kms.promote_due_keys")


@act("task kms.rotate_due_keys", kinds.KEY_PUBLISHED)
def a_key_has_signed_for_a_quarter(world: World) -> Act:
    Key.objects.filter(purpose="token").update(published_at=world.now - timedelta(days=90))
    return task("kms.rotate_due_keys")


@act("POST admin/kms/key/ rotate", kinds.KEY_PUBLISHED)
def an_admin_rotates_a_key(world: World) -> Act:
    return world.button(Key.objects.get(purpose="token"), "rotate")


@act("POST admin/kms/key/ disable")
def an_admin_chooses_keys_to_disable(world: World) -> Act:
    return world.button(Key.objects.get(purpose="token"), "disable")


@act("POST endings/<str:kind>/<str:shown>", kinds.HUMAN_VERIFIED, kinds.KEY_DISABLED)
def an_admin_disables_a_key(world: World) -> Act:
    return world.admin.ready_to_end(f"/endings/key/?id={_replaced(world).pk}")


@act("task registry.expire_everything", kinds.GRANT_EXPIRED)
def a_request_waits_too_long(world: World) -> Act:
    Grant.objects.filter(pk=world.request.pk).update(expires_at=world.past())
    return task("registry.expire_everything")


@act("manage.py expire", kinds.GRANT_EXPIRED)
def a_grant_comes_to_its_end(world: World) -> Act:
    Grant.objects.filter(pk=world.grant.pk).update(valid_until=world.past())
    return command("expire")


@act("task approvals.send_notices", kinds.RECOVERY_NOTICE_SENT)
def a_mail_tells_of_a_recovery(world: World) -> Act:
    begun(world.alice.human, world.past())
    return task("approvals.send_notices")


@act("task approvals.send_notices", kinds.RECOVERY_NOTICE_FAILED)
def a_mail_of_a_recovery_is_not_taken(world: World) -> Act:
    begun(world.alice.human, world.past())
    name = "approvals.send_notices"

    def without_a_server() -> None:
        with override_settings(EMAIL_BACKEND=""):
            task(name)()

    return without_a_server


@act("task approvals.send_notifications", quiet="a message leaves; its row says so")
def a_message_tells_of_a_request(world: World) -> Act:
    by_mail(world.alice.human, world.past())
    assert world.request
    return task("approvals.send_notifications")


@act("task approvals.expire_everything")
def challenges_are_forgotten(world: World) -> Act:
    assert world.alice
    return task("approvals.expire_everything")


@act("task approvals.expire_everything", kinds.INVITATION_ERASED)
def an_invitation_that_was_not_used_is_forgotten(world: World) -> Act:
    unused_invitation(world.now - INVITATION_LIFE - INVITATION_KEPT)
    return task("approvals.expire_everything")


@act("task audit.seal_audit", kinds.REFUSALS_SUPPRESSED)
def a_flood_of_refusals_is_summed_up(world: World) -> Act:
    _flood(world)
    return task("audit.seal_audit")


@act("task audit.create_partitions")
def the_next_months_are_made(world: World) -> Act:
    assert world.now
    return task("audit.create_partitions")


@act("task verifier.mark_history")
def redis_is_told_how_far_the_log_came(world: World) -> Act:
    assert world.now
    return task("verifier.mark_history")


@act("manage.py seal_audit", kinds.REFUSALS_SUPPRESSED)
def an_operator_seals_the_log(world: World) -> Act:
    ensure_key(purpose="audit", actor=TESTER, now=world.now)
    _flood(world)
    return command("seal_audit")


@act("task audit.checkpoint_log")
def the_log_is_signed(world: World) -> Act:
    assert world.alice
    return task("audit.checkpoint_log")


@act("task audit.cosign_log")
def the_log_is_cosigned(world: World) -> Act:
    assert world.alice
    return task("audit.cosign_log")


@act("task audit.archive_due")
def the_log_is_archived(world: World) -> Act:
    return _archiving(world, "audit.archive_due", task)


@act("manage.py archive_audit")
def an_operator_archives_the_log(world: World) -> Act:
    return _archiving(world, "archive_audit", command)


@act("manage.py restore_audit")
def an_operator_brings_events_home(world: World) -> Act:
    return _archiving(world, "restore_audit", command)


@act("manage.py move_audit_store", kinds.STORE_MOVED)
def an_operator_moves_the_logs_store(world: World) -> Act:
    """From a store that already has a checkpoint."""
    ensure_key(purpose="audit", actor=TESTER, now=world.now)
    old, new = (f"file:{settings.VAR_DIR / name}" for name in ("old", "new"))
    with override_settings(AUDIT_STORE=old):
        command("seal_audit")()
    name = "move_audit_store"

    def run() -> Any:
        with override_settings(AUDIT_STORE=new):
            return command(name, "--from", old)()

    assert name
    return run


def _archiving(world: World, name: str, find: Callable[[str], Act]) -> Act:
    """With a store, and a log that is numbered and signed."""
    ensure_key(purpose="audit", actor=TESTER, now=world.now)
    command("seal_audit")()
    checkpoint_log(now=world.now)

    def run() -> Any:
        with TemporaryDirectory() as folder, override_settings(AUDIT_STORE=f"file:{folder}"):
            return find(name)()

    return run


def _flood(world: World) -> None:
    minute = (world.past() - world.now.resolution).replace(second=0, microsecond=0)
    RefusalCount.objects.create(route="GET x", error="not_found", minute=minute, count=70)
