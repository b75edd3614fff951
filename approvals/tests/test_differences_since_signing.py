"""Why a suspended grant waits for a new signature, cause by cause."""

import pytest

from agentauth.protocol.capability import Capability
from approvals.services.changes_since_shown import change_sentence
from approvals.services.differences_since_signing import moved_since_signed
from approvals.services.offered_capabilities import LostPermission
from registry.models import Grant

pytestmark = pytest.mark.django_db

CAUSES = Grant.SuspensionCause
MANIFEST, ALLOWED = change_sentence("manifest", None, None), change_sentence("allowed", None, None)


def said(grant: Grant, cause: str, *by_manifest: bool) -> list[str]:
    grant.suspension_cause = cause
    return moved_since_signed(
        grant, tuple(LostPermission(Capability.read("calendar"), each) for each in by_manifest)
    )


def test_cause_and_each_lost_permission_are_shown_once(reading: Grant) -> None:
    assert said(reading, CAUSES.MANIFEST_CHANGED) == [MANIFEST]
    assert said(reading, CAUSES.ALLOWED_CHANGED) == [ALLOWED]
    assert said(reading, CAUSES.MANIFEST_CHANGED, False) == [MANIFEST, ALLOWED]
    assert said(reading, CAUSES.ALLOWED_CHANGED, True) == [MANIFEST, ALLOWED]
    assert said(reading, CAUSES.ALLOWED_CHANGED, False) == [ALLOWED]


def test_lost_permission_is_shown_beside_another_cause(reading: Grant) -> None:
    assert said(reading, CAUSES.RECOVERY) == ["Your account was recovered."]
    assert said(reading, CAUSES.RECOVERY, True) == [MANIFEST, "Your account was recovered."]
    assert said(reading, CAUSES.RECOVERY, False, False) == [ALLOWED, "Your account was recovered."]
    [restored] = said(reading, CAUSES.RESTORED)
    assert "restored from a backup" in restored


def test_change_that_was_reverted_is_still_shown(reading: Grant) -> None:
    assert said(reading, CAUSES.KEY_ROTATED) == ["The agent changed its key."]
    assert said(reading, CAUSES.AUDIENCE_CHANGED) == [
        "The service moved to another address and back."
    ]
