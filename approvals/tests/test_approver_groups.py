"""A colleague decides: routed by a rule, signed with their own passkey, proved by the receipt."""

import json
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agentauth.protocol.approval_receipt import verify_receipt
from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.money import Money
from agentauth.sdk.offline_receipt_check import check_receipt, read_key_set, summary
from approvals.models import Challenge, Receipt
from approvals.services.human_suspension_and_erasure import delete_human
from approvals.services.statement_builders import approval, confirmation
from approvals.services.term_choices import offered_terms
from approvals.tests.cast import Person, registered
from approvals.tests.notifying import by_mail, outbox
from approvals.tests.recovering import ready_link, recovered
from approvals.tests.test_pages import asking
from kms.services import public_jwks, verification_keys
from registry.models import (
    Absence,
    ApprovalRule,
    ApproverGroup,
    Grant,
    GroupMember,
    Human,
)
from registry.roles import Role
from registry.services.approvers import (
    add_member,
    create_group,
    create_rule,
    end_rule,
    remove_member,
    set_absence,
)
from registry.services.grants import suspend_grant
from registry.tests.cast import PAY, TESTER, AgentClient, assert_refused, enrolled, issue, pending
from tests.time_limits import within
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import USABLE_LIFE
from verifier.services.confirmation_receipt_check import is_signed

__all__ = ["asking"]

pytestmark = pytest.mark.django_db


@pytest.fixture
def finance(bob: Person, now: datetime) -> ApproverGroup:
    """Bob's group."""
    group = create_group(name="Finance", wait_minutes=15, next_group=None, actor=TESTER, now=now)
    add_member(group=group, human=bob.human, actor=TESTER, now=now)
    return group


@pytest.fixture
def rule(finance: ApproverGroup, now: datetime) -> ApprovalRule:
    return create_rule(
        name="Payments over €50",
        group=finance,
        above=Money.of("50.00", "EUR"),
        actor=TESTER,
        now=now,
    )


def verified(grant: Grant, now: datetime) -> dict[str, Any]:
    row = Receipt.objects.get(subject=str(grant.pk))
    keys = verification_keys(purpose="receipt", now=now)
    return dict(
        verify_receipt(row.compact, keys=keys, expected_issuer=settings.ISSUER).statement.body
    )


def test_a_member_decides_for_the_owner_and_the_receipt_says_so(
    alice: Person, bob: Person, rule: ApprovalRule, paying: Grant, agent: AgentClient, now: datetime
) -> None:
    done = bob.approve(paying)
    assert (done.status_code, done.json()["status"]) == (200, "Approved"), done.content
    body = verified(paying, now)
    assert body["human_id"] == str(bob.human.pk)
    assert body["routing"] == {
        "rule": {"id": str(rule.pk), "name": "Payments over €50"},
        "group": {"id": str(rule.group_id), "name": "Finance"},
        "for": {"id": str(alice.human.pk), "name": "Alice"},
        "as": "member",
        "passed_on": False,
    }
    line = (
        "You decide for “Alice”, because the rule “Payments over €50” sends this to the group "
        "“Finance”."
    )
    assert line in Receipt.objects.get().consent_text.splitlines()
    paying.refresh_from_db()
    assert issue(agent, paying).status_code == 201


def test_the_owner_cannot_approve_what_a_rule_sends_to_a_group(
    alice: Person, rule: ApprovalRule, paying: Grant
) -> None:
    page = alice.get(f"/approvals/{paying.pk}/").content.decode()
    assert "Others decide on this" in page
    assert "Approve with passkey" not in page
    refused = alice.statement(paying)
    assert "Bob" in assert_refused(refused, 409, "invalid_state")["error_description"]
    assert alice.deny(paying).json()["status"] == "Denied"


def test_what_no_rule_names_is_the_owners_alone(
    alice: Person, bob: Person, rule: ApprovalRule, reading: Grant, now: datetime
) -> None:
    assert bob.get(f"/approvals/{reading.pk}/").status_code == 404
    assert alice.approve(reading).status_code == 200
    assert "routing" not in verified(reading, now)


def test_a_removed_approver_is_told_and_the_request_still_waits(
    bob: Person, rule: ApprovalRule, paying: Grant, now: datetime
) -> None:
    drawn = bob.drawn(paying)
    asked = bob.ask(paying, "review", drawn=drawn).json()["drawn"]
    assert bob.ask(paying, "second-step", drawn=asked).status_code == 200
    options = bob.statement(paying, drawn=asked).json()["publicKey"]
    remove_member(member=GroupMember.objects.get(), actor=TESTER, now=now)
    for answer in (bob.ask(paying, "review", drawn=drawn), bob.decide(paying, options)):
        refused = assert_refused(answer, 409, "grant_changed")
        assert "no longer decide" in refused["error_description"]
    paying.refresh_from_db()
    assert paying.status == "pending"
    assert bob.get(f"/approvals/{paying.pk}/").status_code == 404


def test_of_two_approvers_the_second_learns_who_was_first(
    bob: Person, rule: ApprovalRule, paying: Grant, now: datetime
) -> None:
    carol = registered("carol@example.org", "Carol", now=now)
    add_member(group=rule.group, human=carol.human, actor=TESTER, now=now)
    drawn = carol.ask(paying, "review").json()["drawn"]
    assert carol.ask(paying, "second-step", drawn=drawn).status_code == 200
    options = carol.statement(paying, drawn=drawn).json()["publicKey"]
    assert bob.approve(paying).status_code == 200
    refused = assert_refused(carol.decide(paying, options), 409, "invalid_state")
    assert refused["error_description"] == "“Bob” already decided this request."
    page = carol.get(f"/approvals/{paying.pk}/").content.decode()
    assert "“Bob” approved this by the rule “Payments over €50”" in page
    assert Receipt.objects.filter(subject=str(paying.pk)).count() == 1


def test_a_member_denies_for_the_owner_who_reads_who_and_why(
    alice: Person, bob: Person, rule: ApprovalRule, paying: Grant, now: datetime
) -> None:
    assert bob.deny(paying, "Too much").json()["status"] == "Denied"
    assert verified(paying, now)["routing"]["for"]["name"] == "Alice"
    page = alice.get(f"/approvals/{paying.pk}/").content.decode()
    assert "“Bob” denied this by the rule" in page
    assert "Too much" in page


def test_the_owner_is_told_and_can_revoke_what_a_colleague_approved(
    alice: Person, bob: Person, rule: ApprovalRule, paying: Grant, agent: AgentClient, now: datetime
) -> None:
    by_mail(alice.human, now)
    assert bob.approve(paying).status_code == 200
    assert outbox(channel__human=alice.human) == [("decided", "pending")]
    assert (
        f'href="/approvals/{paying.pk}/revoke/"'
        in alice.get(f"/approvals/{paying.pk}/").content.decode()
    )
    # Revocation stays with the owner and administrators.
    assert bob.get(f"/approvals/{paying.pk}/revoke/").status_code == 404
    assert bob.get(f"/agents/{paying.agent_id}/").status_code == 404
    assert alice.end(f"/approvals/{paying.pk}/revoke/").status_code == 302
    paying.refresh_from_db()
    assert paying.status == "revoked"


def test_a_members_own_request_is_decided_by_another_person(
    alice: Person, bob: Person, admin: Person, rule: ApprovalRule, paying: Grant, now: datetime
) -> None:
    remove_member(member=GroupMember.objects.get(), actor=TESTER, now=now)
    add_member(group=rule.group, human=alice.human, actor=TESTER, now=now)
    page = alice.get(f"/approvals/{paying.pk}/").content.decode()
    assert "No member of “Finance” could decide: passed on to the administrators" in page
    assert_refused(alice.statement(paying), 409, "invalid_state")
    assert admin.approve(paying).status_code == 200
    body = verified(paying, now)["routing"]
    assert (body["as"], body["group"]) == ("administrator", None)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.OWNER])
def test_what_is_passed_on_reaches_an_approver_and_no_auditor_or_operator(
    rule: ApprovalRule, paying: Grant, now: datetime, role: Role
) -> None:
    remove_member(member=GroupMember.objects.get(), actor=TESTER, now=now)
    person = registered("role@example.org", "Ro Le", now=now, role=role)
    shown = "“Alice”" in person.get("/approvals/").content.decode()
    if role is Role.APPROVER:
        assert shown
        assert person.approve(paying).status_code == 200
        assert verified(paying, now)["routing"]["as"] == "administrator"
    else:
        assert not shown
        assert person.get(f"/approvals/{paying.pk}/").status_code == 404


def test_the_only_administrator_decides_on_their_own_and_the_text_says_so(
    alice: Person, rule: ApprovalRule, paying: Grant, agent: AgentClient, now: datetime
) -> None:
    remove_member(member=GroupMember.objects.get(), actor=TESTER, now=now)
    # Not an owner without that right: rows that are written away must not make them the last one.
    assert not Human.objects.filter(is_staff=True).exists()
    assert_refused(alice.statement(paying), 409, "invalid_state")
    human = alice.human
    # An approver could not end the rule either.
    for role in (Role.APPROVER, Role.OWNER):
        assert_refused(alice.statement(paying), 409, "invalid_state")
        human.set_role(role)
        human.save()
    assert alice.get("/approvals/waiting").json()["waiting"] == "1"
    assert alice.approve(paying).status_code == 200
    assert verified(paying, now)["routing"]["as"] == "owner"
    assert "no one else can decide" in Receipt.objects.get().consent_text
    paying.refresh_from_db()
    assert issue(agent, paying).status_code == 201


def test_a_deputy_decides_while_the_member_is_away_and_not_after(
    bob: Person, rule: ApprovalRule, paying: Grant, now: datetime
) -> None:
    carol = registered("carol@example.org", "Carol", now=now)
    start, end = now - timedelta(hours=1), now + timedelta(hours=1)
    absence = set_absence(
        human=bob.human,
        starts_at=start,
        ends_at=end,
        deputy=carol.human,
        actor=TESTER,
        now=now,
    )
    assert bob.get(f"/approvals/{paying.pk}/").status_code == 404
    assert carol.approve(paying).status_code == 200
    assert verified(paying, now)["routing"]["as"] == "deputy"
    assert "You decide as the deputy of a member who is away." in Receipt.objects.get().consent_text
    assert Absence.objects.get() == absence


def test_a_rule_that_ends_gives_the_request_back_to_its_owner(
    alice: Person, bob: Person, rule: ApprovalRule, paying: Grant, now: datetime
) -> None:
    end_rule(rule=rule, actor=TESTER, now=now)
    assert bob.get(f"/approvals/{paying.pk}/").status_code == 404
    assert alice.approve(paying).status_code == 200


def test_a_page_drawn_before_the_rule_signs_nothing(
    alice: Person, finance: ApproverGroup, paying: Grant, now: datetime
) -> None:
    drawn = alice.ask(paying, "review").json()["drawn"]
    assert alice.ask(paying, "second-step", drawn=drawn).status_code == 200
    options = alice.statement(paying, drawn=drawn).json()["publicKey"]
    create_rule(name="All", group=finance, actor=TESTER, now=now)
    assert_refused(alice.decide(paying, options), 409, "grant_changed")
    paying.refresh_from_db()
    assert paying.status == "pending"


def test_a_challenge_written_over_signs_nothing_for_another(
    alice: Person, bob: Person, paying: Grant, rule: ApprovalRule, now: datetime
) -> None:
    """Mallory is no approver. She rewrites the statement of her own ceremony."""
    mallory = registered("mallory@example.org", "Mallory", now=now)
    own = pending(enrolled(mallory.human, now=now), paying.service_provider, now=now)
    drawn = mallory.drawn(own)
    assert mallory.statement(own, drawn=drawn).status_code == 200
    row = Challenge.objects.get(purpose="approval")
    forged = approval(
        grant=paying,
        human=mallory.human,
        decision="approve",
        terms=offered_terms(paying, now),
        second_step=True,
        consent_text="x",
        now=now,
        routing={
            "rule": {"id": str(rule.pk), "name": rule.name},
            "group": {"id": str(rule.group_id), "name": "Finance"},
            "for": {"id": str(alice.human.pk), "name": "Alice"},
            "as": "member",
            "passed_on": False,
        },
    )
    Challenge.objects.filter(pk=row.pk).update(
        statement=forged.to_json(), challenge=forged.challenge(), consent_text="x"
    )
    options = {"challenge": b64u_encode(forged.challenge()), "rpId": "localhost"}
    refused = mallory.post(
        f"/approvals/{own.pk}/decide", {"credential": mallory.device.assertion(options)}
    )
    assert_refused(refused, 400, "invalid_assertion")
    assert not Receipt.objects.exists()


def test_a_rewritten_statement_confirms_no_payment_that_a_rule_sends_on(
    alice: Person, asking: Confirmation, finance: ApproverGroup, now: datetime
) -> None:
    """Alice can write the database: the row is below the rule's amount while she decides."""
    create_rule(
        name="Over €50", group=finance, above=Money.of("50.00", "EUR"), actor=TESTER, now=now
    )
    real = asking.action
    small = real | {"amount": real["amount"] | {"value": "1.00"}}
    Confirmation.objects.filter(pk=asking.pk).update(action=small)
    path = f"/confirmations/{asking.pk}/"
    assert alice.press_on(path, decision="confirm").status_code == 200
    row, text = Challenge.objects.get(purpose="confirmation"), "x"
    asking.refresh_from_db()
    asking.action = real
    forged = confirmation(
        row=asking, human=alice.human, decision="confirm", consent_text=text, now=now
    )
    Challenge.objects.filter(pk=row.pk).update(
        statement=forged.to_json(), challenge=forged.challenge(), consent_text=text
    )
    options = {"challenge": b64u_encode(forged.challenge()), "rpId": "localhost"}
    done = alice.post(f"{path}decide", {"credential": alice.device.assertion(options)})
    assert_refused(done, 400, "invalid_assertion")
    assert not Receipt.objects.filter(kind="confirmation").exists()


def test_what_a_deleted_approver_signed_for_others_stays_and_holds_no_name(
    bob: Person, rule: ApprovalRule, paying: Grant, agent: AgentClient, now: datetime
) -> None:
    assert bob.approve(paying).status_code == 200
    human = bob.human
    delete_human(human=human, actor=TESTER, now=now)
    row = Receipt.objects.get()
    assert (row.passkey_name, bool(row.compact)) == ("", True)
    assert "Bob" not in row.consent_text
    assert not GroupMember.objects.exists()
    paying.refresh_from_db()
    assert issue(agent, paying).status_code == 201


def test_an_administrator_finds_what_an_approver_decided_for_others(
    admin: Person, bob: Person, rule: ApprovalRule, paying: Grant
) -> None:
    assert bob.approve(paying).status_code == 200
    listed = f"/admin/registry/grant/?human__id__exact={bob.human.pk}"
    assert listed in admin.get(f"/admin/registry/human/{bob.human.pk}/change/").content.decode()
    assert f"/admin/registry/grant/{paying.pk}/" in admin.get(listed).content.decode()


def test_what_a_recovered_approver_signed_for_others_waits_for_a_signature(
    alice: Person, bob: Person, rule: ApprovalRule, paying: Grant, agent: AgentClient, now: datetime
) -> None:
    assert bob.approve(paying).status_code == 200
    anew = recovered(ready_link(bob.human, now))
    paying.refresh_from_db()
    assert (paying.status, paying.suspension_cause) == ("suspended", "recovery")
    assert_refused(issue(agent, paying), 400, "invalid_grant")
    said = "or of the person who approved this, was recovered."
    assert said in anew.get(f"/approvals/{paying.pk}/").content.decode()
    assert anew.approve(paying).status_code == 200
    assert issue(agent, paying).status_code == 201


def test_what_was_signed_for_a_deleted_owner_is_erased(
    alice: Person, bob: Person, rule: ApprovalRule, paying: Grant, now: datetime
) -> None:
    assert bob.approve(paying).status_code == 200
    delete_human(human=alice.human, actor=TESTER, now=now)
    row = Receipt.objects.get()
    assert (row.compact, row.consent_text) == ("", "")


def test_a_member_signs_a_suspended_grant_again_for_its_owner(
    bob: Person, rule: ApprovalRule, paying: Grant, agent: AgentClient, now: datetime
) -> None:
    assert bob.approve(paying).status_code == 200
    paying.refresh_from_db()
    cause = Grant.SuspensionCause.MANIFEST_CHANGED
    suspend_grant(grant=paying, actor=TESTER, now=now, cause=cause)
    assert f"/approvals/{paying.pk}/" in bob.get("/approvals/").content.decode()
    # It did not pass from group to group: all may sign at once.
    page = bob.get(f"/approvals/{paying.pk}/").content.decode()
    assert "passed on" not in page
    assert "This was approved before." in page
    assert bob.approve(paying).status_code == 200
    paying.refresh_from_db()
    assert issue(agent, paying).status_code == 201


def test_the_receipt_verifies_offline_and_names_the_rule_and_the_owner(
    bob: Person,
    rule: ApprovalRule,
    paying: Grant,
    agent: AgentClient,
    tmp_path: Path,
    now: datetime,
) -> None:
    assert bob.approve(paying).status_code == 200
    answer = agent.call("GET", f"/v1/grants/{paying.pk}/receipt")
    (tmp_path / "receipt").write_text(json.dumps(answer.json()))
    (tmp_path / "keys").write_text(json.dumps(public_jwks(purpose="receipt", now=now)))
    keys = read_key_set((tmp_path / "keys").read_text())
    found = summary(check_receipt((tmp_path / "receipt").read_text(), keys=keys, issuer=None))
    assert found["human_id"] == str(bob.human.pk)
    assert found["decided_for"] == f"Alice ({paying.agent.human_id})"
    assert found["rule"] == f"Payments over €50 ({rule.pk})"
    assert (found["group"], found["decided_as"]) == (f"Finance ({rule.group_id})", "member")


def questions(seen: CaptureQueriesContext) -> int:
    """The queries, without the one that each process asks once a second."""
    return sum("verifier_home" not in each["sql"] for each in seen.captured_queries)


def test_1000_waiting_requests_cost_as_many_queries_as_one(
    alice: Person, bob: Person, rule: ApprovalRule, paying: Grant, now: datetime
) -> None:
    page = bob.get("/approvals/").content.decode()
    assert "For “Alice”" in page
    with CaptureQueriesContext(connection) as few:
        bob.get("/approvals/")
    Grant.objects.bulk_create(
        Grant(
            agent_id=paying.agent_id,
            service_provider_id=paying.service_provider_id,
            requested_capabilities=paying.requested_capabilities,
            requested_envelope=paying.requested_envelope,
            requested_seconds=paying.requested_seconds,
            request_digest=number.to_bytes(32, "big"),
            created_at=now,
            expires_at=now + timedelta(hours=1),
        )
        for number in range(999)
    )
    began = time.monotonic()
    with CaptureQueriesContext(connection) as many:
        page = bob.get("/approvals/").content.decode()
    took = time.monotonic() - began
    assert questions(many) == questions(few)
    assert "1,000 decisions wait for you" in page
    assert "1 to 25 of 1,000, by agent, the oldest first" in page
    assert took < within(2)


def test_a_member_confirms_a_payment_for_the_owner_and_it_is_allowed(
    alice: Person, bob: Person, asking: Confirmation, finance: ApproverGroup, now: datetime
) -> None:
    create_rule(
        name="Payments over €50",
        group=finance,
        above=Money.of("50.00", "EUR"),
        actor=TESTER,
        now=now,
    )
    path = f"/confirmations/{asking.pk}/"
    assert "Others decide on this" in alice.get(path).content.decode()
    assert_refused(alice.press_on(path, decision="confirm"), 409, "invalid_state")
    assert "For “Alice”" in bob.get("/approvals/").content.decode()
    options = bob.press_on(path, decision="confirm").json()["publicKey"]
    done = bob.post(f"{path}decide", {"credential": bob.device.assertion(options)})
    assert done.json()["status"] == "Confirmed", done.content
    asking.refresh_from_db()
    grant = Grant.objects.select_related("agent").get(pk=asking.grant_id)
    assert is_signed(asking, grant, usable=USABLE_LIFE, now=now)
    assert "“Bob” confirmed this by the rule" in alice.get(path).content.decode()
    # Another owner's transaction does not count by it.
    grant.agent.human = bob.human
    assert not is_signed(asking, grant, usable=USABLE_LIFE, now=now)


def test_strangers_see_nothing_of_what_a_rule_sends_to_others(
    finance: ApproverGroup, asking: Confirmation, agent: AgentClient, now: datetime
) -> None:
    provider = asking.grant.service_provider
    paying = pending(agent, provider, now=now, capabilities=[PAY])
    create_rule(name="All", group=finance, actor=TESTER, now=now)
    eve = registered("eve@example.org", "Eve", now=now)
    for path in (f"/approvals/{paying.pk}/", f"/confirmations/{asking.pk}/"):
        assert eve.get(path).status_code == 404
        assert_refused(eve.post(f"{path}statement", {"drawn": "x"}), 404, "not_found")
    assert eve.get("/approvals/").context["waiting"] == []
