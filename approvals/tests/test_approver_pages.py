"""The administrators' page of groups, rules and absences, and each person's own absences."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agentauth.protocol.errors import InvalidRequestError, InvalidStateError
from approvals.services.human_suspension_and_erasure import delete_human, suspend_human
from approvals.services.typed_local_time import moment_typed
from approvals.tests.cast import Person
from audit import kinds
from audit.models import Event
from registry.models import (
    Absence,
    ApprovalRule,
    ApproverGroup,
    Grant,
    GroupMember,
    ServiceProvider,
)
from registry.services import approvers
from registry.services.decision_routing import route_now
from registry.services.humans import change_time_zone
from registry.tests.cast import TESTER, assert_refused
from registry.tests.written_rows import write

pytestmark = pytest.mark.django_db

GROUP = {"name": "Finance", "wait": "15", "next": ""}


def made(admin: Person, **fields: str) -> ApproverGroup:
    answer = admin.press("/approvers/groups", GROUP | fields)
    assert answer.status_code == 302, answer.content
    return ApproverGroup.objects.get(name=(GROUP | fields)["name"])


def test_an_administrator_sets_up_groups_members_rules_and_a_preview(
    admin: Person, bob: Person, service_provider: ServiceProvider
) -> None:
    directors = made(admin, name="Directors")
    finance = made(admin, next=str(directors.pk))
    path = f"/approvers/groups/{finance.pk}"
    assert admin.press(f"{path}/members", {"human": str(bob.human.pk)}).status_code == 302
    rule = {
        "name": "Payments over €1,000",
        "service": str(service_provider.pk),
        "type": "transact",
        "amount": "1000",
        "currency": "eur",
        "group": str(finance.pk),
    }
    assert admin.press("/approvers/rules", rule).status_code == 302
    page = admin.get("/approvers/").content.decode()
    assert "Payments of more than €1,000.00 at “Acme Payments” → “Finance”" in page
    asked = f"/approvers/?service={service_provider.pk}&type=transact&currency=EUR&amount="
    shown = admin.get(f"{asked}1000.01").context["preview"]
    assert shown[0] == "The rule “Payments over €1,000” sends this to “Finance”."
    assert "These people may decide: “Bob”." in shown
    nothing = ["No rule matches: the owner of the agent decides alone."]
    assert admin.get(f"{asked}1000").context["preview"] == nothing
    assert admin.get(f"{asked}x").context["preview_error"] == "Enter an amount such as 40.00."
    without = admin.get("/approvers/?type=transact&amount=x").context["preview_error"]
    assert without == "Enter an amount such as 40.00."
    other = admin.get("/approvers/?type=transact&amount=80&currency=EURO").context["preview_error"]
    assert other == "Write the currency as three letters, such as EUR."
    changed = {"name": "Money", "wait": "5", "next": str(directors.pk)}
    assert admin.press(f"{path}/change", changed).status_code == 302
    member = GroupMember.objects.get()
    assert admin.client.post(f"/approvers/members/{member.pk}/remove").status_code == 302
    assert not GroupMember.objects.exists()
    found = ApprovalRule.objects.get()
    assert admin.press(f"/approvers/rules/{found.pk}/end").status_code == 302
    assert admin.get(f"{asked}9999").context["preview"] == nothing


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"wait": "60"}, "1 to 59 minutes"),
        ({"wait": "x"}, "as a number of minutes"),
        ({"name": ""}, "name"),
        ({"name": "Directors"}, "There is a group “Directors” already."),
        ({"next": "x"}, "Choose one from the list."),
    ],
)
def test_a_refused_group_says_why_and_loses_nothing_typed(
    admin: Person, changes: dict[str, str], sentence: str
) -> None:
    made(admin, name="Directors")
    typed = {"name": "Finance", "wait": "25"} | changes
    answer = admin.press("/approvers/groups", typed)
    page = answer.content.decode()
    assert (answer.status_code, sentence in page) == (400, True), page
    for value in typed.values():
        assert f'value="{value}"' in page or value == "x"
    assert ApproverGroup.objects.count() == 1


def test_groups_never_pass_on_in_a_circle(admin: Person) -> None:
    last = made(admin, name="Directors")
    first = made(admin, next=str(last.pk))
    circle = {"name": "Directors", "wait": "15", "next": str(first.pk)}
    answer = admin.press(f"/approvers/groups/{last.pk}/change", circle)
    assert "in a circle" in answer.content.decode()
    last.refresh_from_db()
    assert last.next_id is None


def test_a_rule_goes_before_another_and_all_keep_their_seals(admin: Person) -> None:
    group = str(made(admin).pk)
    for name, before in (("One", ""), ("Two", ""), ("Zero", "One")):
        place = str(ApprovalRule.objects.get(name=before).pk) if before else ""
        done = admin.press("/approvers/rules", {"name": name, "group": group, "before": place})
        assert done.status_code == 302
    rows = list(ApprovalRule.objects.order_by("position"))
    assert [row.name for row in rows] == ["Zero", "One", "Two"]
    assert all(row.is_sealed() for row in rows)


def order(admin: Person) -> list[str]:
    return [each["row"].name for each in admin.get("/approvers/").context["rules"]]


def three_rules(group: ApproverGroup, now: datetime) -> list[ApprovalRule]:
    more: dict[str, Any] = {"group": group, "actor": TESTER, "now": now}
    return [approvers.create_rule(name=name, **more) for name in ("One", "Two", "Three")]


def test_a_rule_moves_one_place_and_all_keep_their_seals(admin: Person, now: datetime) -> None:
    one, two, three = three_rules(made(admin), now)
    page = admin.get("/approvers/").content.decode()
    assert 'aria-label="Move rule “One” up"' not in page
    assert 'aria-label="Move rule “Three” down"' not in page
    # “Two” up; then “One” down, below “Three”.
    for above, below in ((one, two), (one, three)):
        path = f"/approvers/rules/{below.pk}/before/{above.pk}"
        assert f'action="{path}"' in admin.get("/approvers/").content.decode()
        assert admin.press(path).status_code == 302
    assert order(admin) == ["Two", "Three", "One"]
    assert all(row.is_sealed() for row in ApprovalRule.objects.all())
    event = Event.objects.filter(kind=kinds.APPROVAL_RULE_MOVED).latest("pk")
    assert (event.data["rule_id"], event.data["before"]) == (str(three.pk), str(one.pk))
    assert event.actor_id == str(admin.human.pk)


def test_a_session_alone_moves_no_rule(admin: Person, bob: Person, now: datetime) -> None:
    one, two, _three = three_rules(made(admin), now)
    path = f"/approvers/rules/{two.pk}/before/{one.pk}"
    assert_refused(admin.client.post(path), 401, "verification_required")
    signed = json.dumps(admin.verification(f"/approvers/rules/{one.pk}/before/{two.pk}"))
    answer = admin.client.post(path, {"verification": signed})
    assert_refused(answer, 400, "invalid_assertion")
    assert_refused(bob.client.post(path), 404, "not_found")
    assert order(admin) == ["One", "Two", "Three"]


def test_a_move_in_an_order_that_changed_is_refused(admin: Person, now: datetime) -> None:
    one, two, three = three_rules(made(admin), now)
    for rule, before in ((three, one), (one, two), (one, one)):
        path = f"/approvers/rules/{rule.pk}/before/{before.pk}"
        answer = admin.press(path)
        said = "Another administrator changed the rules meanwhile."
        assert (answer.status_code, said in answer.content.decode()) == (400, True)
    assert admin.press(f"/approvers/rules/{two.pk}/end").status_code == 302
    assert admin.press(f"/approvers/rules/{three.pk}/before/{one.pk}").status_code == 302
    assert order(admin) == ["Three", "One"]


def test_rules_made_in_one_moment_can_be_told_apart_and_moved(admin: Person, now: datetime) -> None:
    for rule in three_rules(made(admin), now):
        # As two administrators who added rules at once leave them.
        rule.position = 0
        rule.set_seal()
        rule.save()
    first, second, third = ApprovalRule.objects.order_by("position", "created_at", "pk")
    assert admin.press(f"/approvers/rules/{third.pk}/before/{second.pk}").status_code == 302
    assert order(admin) == [first.name, third.name, second.name]


def test_a_row_that_no_service_wrote_is_not_moved_and_sealed(admin: Person, now: datetime) -> None:
    one, two, _three = three_rules(made(admin), now)
    ApprovalRule.objects.filter(pk=two.pk).update(name="Other")
    answer = admin.press(f"/approvers/rules/{two.pk}/before/{one.pk}")
    assert (answer.status_code, "was not written by the registry" in answer.content.decode()) == (
        400,
        True,
    )
    assert not ApprovalRule.objects.get(pk=two.pk).is_sealed()


def test_no_act_seals_what_rests_on_a_row_that_no_service_wrote(
    admin: Person, bob: Person, now: datetime
) -> None:
    group, other = made(admin), made(admin, name="Directors")
    one, _two, three = three_rules(group, now)
    said: dict[str, Any] = {"actor": TESTER, "now": now}
    write(three, name="Other")
    write(other, wait_minutes=1)
    other.refresh_from_db()
    named: dict[str, Any] = {"name": "New", "wait_minutes": 5, "next_group": other}
    for act in (
        lambda: approvers.create_rule(name="Zero", group=group, before=one, **said),
        lambda: approvers.create_rule(name="Zero", group=other, **said),
        lambda: approvers.add_member(group=other, human=bob.human, **said),
        lambda: approvers.create_group(**named, **said),
        lambda: approvers.change_group(group=other, **named | {"next_group": None}, **said),
    ):
        with pytest.raises(InvalidStateError, match="not written by the registry"):
            act()


def test_a_request_follows_the_new_order(
    admin: Person, bob: Person, alice: Person, reading: Grant, now: datetime
) -> None:
    """A pending request too: the first rule that matches decides."""
    more: dict[str, Any] = {"actor": TESTER, "now": now}
    rules = []
    for name, member in (("Finance", admin), ("Legal", bob)):
        group = made(admin, name=name)
        approvers.add_member(group=group, human=member.human, **more)
        rules.append(approvers.create_rule(name=name, group=group, **more))

    def deciders() -> set[str]:
        return set(route_now(reading, now).deciders)

    assert deciders() == {str(admin.human.pk)}
    assert bob.get(f"/approvals/{reading.pk}/").status_code == 404
    assert admin.press(f"/approvers/rules/{rules[1].pk}/before/{rules[0].pk}").status_code == 302
    assert deciders() == {str(bob.human.pk)}
    assert bob.get(f"/approvals/{reading.pk}/").status_code == 200


def test_the_page_takes_as_many_queries_for_ten_rules_as_for_three(
    admin: Person, now: datetime
) -> None:
    group = made(admin)

    def asked() -> int:
        with CaptureQueriesContext(connection) as found:
            admin.get("/approvers/")
        return len([each for each in found if "verifier_home" not in each["sql"]])

    three_rules(group, now)
    admin.get("/approvers/")
    few = asked()
    for _ in range(3):
        three_rules(group, now)
    assert asked() == few


def test_a_group_that_something_names_is_not_removed(admin: Person) -> None:
    last = made(admin, name="Directors")
    first = made(admin, next=str(last.pk))
    refused = admin.client.post(f"/approvers/groups/{last.pk}/remove")
    assert (refused.status_code, "passes requests on to this one" in refused.content.decode()) == (
        400,
        True,
    )
    assert admin.client.post(f"/approvers/groups/{first.pk}/remove").status_code == 302
    assert admin.client.post(f"/approvers/groups/{last.pk}/remove").status_code == 302


def test_a_group_that_a_rule_named_stays_though_the_rule_ended(
    admin: Person, now: datetime
) -> None:
    group = made(admin)
    rule = approvers.create_rule(name="All", group=group, actor=TESTER, now=now)
    approvers.end_rule(rule=rule, actor=TESTER, now=now)
    refused = admin.client.post(f"/approvers/groups/{group.pk}/remove")
    assert (refused.status_code, "cannot be removed" in refused.content.decode()) == (400, True)


def test_only_active_people_become_members_and_deputies(
    admin: Person, bob: Person, now: datetime
) -> None:
    group, human = made(admin), bob.human
    suspend_human(human=human, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError, match="Only an active human can be a member"):
        approvers.add_member(group=group, human=human, actor=TESTER, now=now)
    end = now + timedelta(days=1)
    away: dict[str, Any] = {"human": admin.human, "starts_at": now, "ends_at": end}
    for deputy in (human, admin.human):
        with pytest.raises(InvalidRequestError, match="another, active human"):
            approvers.set_absence(deputy=deputy, actor=TESTER, now=now, **away)


def test_a_deleted_deputy_leaves_an_absence_unless_no_service_wrote_it(
    admin: Person, bob: Person, now: datetime
) -> None:
    away: dict[str, Any] = {"human": admin.human, "deputy": bob.human, "starts_at": now}
    kept, written = (
        approvers.set_absence(ends_at=now + timedelta(days=days), actor=TESTER, now=now, **away)
        for days in (1, 2)
    )
    write(written, ends_at=now + timedelta(days=9))
    delete_human(human=bob.human, actor=TESTER, now=now)
    row = Absence.objects.get()
    assert (row.pk, row.deputy_id, row.is_sealed()) == (kept.pk, None, True)


def test_absences_are_bounded_in_length_and_number(
    alice: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(days: int) -> None:
        end = now + timedelta(days=days)
        approvers.set_absence(human=alice.human, starts_at=now, ends_at=end, actor=TESTER, now=now)

    monkeypatch.setattr(approvers, "MAX_ABSENCES", 2)
    with pytest.raises(InvalidRequestError, match="at most a year"):
        leave(367)
    leave(366)
    leave(1)
    with pytest.raises(InvalidStateError, match="The limit is 2 absences"):
        leave(1)


def test_what_names_a_group_that_was_removed_meanwhile_is_refused(
    admin: Person, bob: Person, now: datetime
) -> None:
    gone, kept = made(admin, name="Directors"), made(admin)
    admin.client.post(f"/approvers/groups/{gone.pk}/remove")
    said: dict[str, Any] = {"actor": TESTER, "now": now}
    more: dict[str, Any] = {"name": "Other", "wait_minutes": 5, "next_group": gone}
    for act in (
        lambda: approvers.create_rule(name="Large", group=gone, **said),
        lambda: approvers.add_member(group=gone, human=bob.human, **said),
        lambda: approvers.create_group(**more, **said),
        lambda: approvers.change_group(group=kept, **more, **said),
        lambda: approvers.remove_group(group=gone, **said),
    ):
        with pytest.raises(InvalidRequestError, match="removed meanwhile"):
            act()


def test_a_person_sets_and_ends_their_own_absence_by_their_clock(
    alice: Person, bob: Person, now: datetime
) -> None:
    change_time_zone(human=alice.human, zone="Europe/Berlin", actor=TESTER, now=now)
    year = now.year + 1
    sent = {"from": f"{year}-07-01T09:00", "until": f"{year}-07-02T09:00"}
    assert alice.client.post("/settings/absences", sent).status_code == 302
    row = Absence.objects.get()
    assert row.starts_at == datetime(year, 7, 1, 7, tzinfo=UTC)
    assert (row.human_id, row.deputy_id, row.is_sealed()) == (alice.human.pk, None, True)
    path = f"/settings/absences/{row.pk}/remove"
    assert_refused(bob.client.post(path), 404, "not_found")
    assert alice.client.post(path).status_code == 302
    assert not Absence.objects.exists()


def test_a_refused_absence_keeps_what_was_typed(alice: Person) -> None:
    sent = {"from": "2126-07-02T09:00", "until": "2126-07-01T09:00"}
    answer = alice.client.post("/settings/absences", sent)
    page = answer.content.decode()
    assert (answer.status_code, "must end after it begins" in page) == (400, True)
    assert f'value="{sent["from"]}"' in page
    assert Event.objects.filter(kind="audit.request.refused").exists()


def test_an_administrator_names_a_deputy_and_the_person_sees_it(
    admin: Person, alice: Person, bob: Person, now: datetime
) -> None:
    sent = {
        "human": str(alice.human.pk),
        "deputy": str(bob.human.pk),
        "from": f"{now - timedelta(days=1):%Y-%m-%dT%H:%M}",
        "until": f"{now + timedelta(days=1):%Y-%m-%dT%H:%M}",
    }
    assert admin.press("/approvers/absences", sent).status_code == 302
    assert "Deputy: “Bob”" in alice.get("/settings/").content.decode()
    assert "away now" in admin.get("/approvers/").content.decode()


BERLIN = "Europe/Berlin"


@pytest.mark.parametrize(
    ("text", "is_end", "found"),
    [
        # Clocks go back on 25 October 2026 at 03:00: half past two comes twice.
        ("2026-10-25T02:30", False, datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        ("2026-10-25T02:30", True, datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),
        ("2026-10-25T03:00", True, datetime(2026, 10, 25, 2, 0, tzinfo=UTC)),
        ("2026-03-29T01:59", False, datetime(2026, 3, 29, 0, 59, tzinfo=UTC)),
        ("2026-03-29T03:00", False, datetime(2026, 3, 29, 1, 0, tzinfo=UTC)),
    ],
)
def test_a_moment_is_read_by_the_persons_clock_across_dst(
    text: str, is_end: bool, found: datetime
) -> None:
    assert moment_typed(text, BERLIN, is_end=is_end) == found


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-29T02:30",
        "",
        "2026-02-30T10:00",
        "2026-03-29",
        "2026-03-29T02:30Z",
        "9999-12-31T23:59",
    ],
)
def test_a_moment_that_does_not_exist_is_refused(text: str) -> None:
    zone = "America/Los_Angeles" if text.startswith("9999") else BERLIN
    with pytest.raises(InvalidRequestError):
        moment_typed(text, zone, is_end=False)


def test_a_row_that_no_service_wrote_is_marked_and_can_be_ended(
    admin: Person, bob: Person, now: datetime
) -> None:
    group = made(admin)
    ApprovalRule.objects.create(position=0, name="Forged", group=group, created_at=now)
    GroupMember.objects.create(group=group, human=bob.human, created_at=now)
    page = admin.get("/approvers/").content.decode()
    assert "The registry did not write this row." in page
    assert "not written by the registry" in page
    rule = ApprovalRule.objects.get()
    assert admin.press(f"/approvers/rules/{rule.pk}/end").status_code == 302
    assert "did not write" not in admin.get("/approvers/").content.decode()


def test_the_page_is_for_administrators_alone(bob: Person) -> None:
    assert bob.get("/approvers/").status_code == 404
    assert_refused(bob.client.post("/approvers/groups", GROUP), 404, "not_found")
