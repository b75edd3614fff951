"""Why a suspended grant waits for a new signature, cause by cause."""

import pytest

from agentauth.protocol.capability import Capability
from approvals.services.change_sentences import change_sentence
from approvals.services.differences_since_signing import describe_differences
from approvals.services.offered_capabilities import LostPermission
from approvals.tests.cast import Person
from registry.models import Grant

pytestmark = pytest.mark.django_db

CAUSES = Grant.SuspensionCause
MANIFEST, ALLOWED = change_sentence("manifest", None, None), change_sentence("allowed", None, None)


def said(grant: Grant, cause: str, *by_manifest: bool, viewer: Person | None = None) -> list[str]:
    """The sentences for the owner, or for `viewer`."""
    grant.suspension_cause = cause
    reader = viewer.human if viewer else grant.agent.human
    assert reader is not None
    return describe_differences(
        grant,
        tuple(LostPermission(Capability.read("calendar"), each) for each in by_manifest),
        viewer=reader,
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


def test_only_the_owner_reads_that_their_account_was_recovered(
    alice: Person, bob: Person, reading: Grant
) -> None:
    assert said(reading, CAUSES.RECOVERY, viewer=alice) == ["Your account was recovered."]
    owners = "The account of the agent’s owner was recovered."
    assert said(reading, CAUSES.RECOVERY, viewer=bob) == [owners]
    reading.human = bob.human
    [either] = said(reading, CAUSES.RECOVERY, viewer=alice)
    assert either.startswith("The account of the owner, or of the person who approved this")


def test_change_that_was_reverted_is_still_shown(alice: Person, reading: Grant) -> None:
    assert alice.approve(reading).status_code == 200
    reading.refresh_from_db()
    assert said(reading, CAUSES.KEY_ROTATED) == ["The agent changed its key."]
    assert said(reading, CAUSES.AUDIENCE_CHANGED) == [
        "The service moved to another address and back."
    ]


def test_no_reverted_change_is_claimed_without_a_signed_statement(reading: Grant) -> None:
    assert said(reading, CAUSES.KEY_ROTATED) == ["The agent changed its key."]
    assert said(reading, CAUSES.AUDIENCE_CHANGED) == ["The service’s address changed."]
