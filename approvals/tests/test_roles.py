"""Roles of administrators: given, changed and taken by owners, and read at each request."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from agentauth.protocol.errors import InvalidStateError, PermissionDeniedError
from approvals.admin_details import row_page
from approvals.models import Recovery, SetupCode
from approvals.services.human_suspension_and_erasure import change_role, delete_human
from approvals.services.recovery import confirm_recovery, start_recovery
from approvals.services.setup_and_sign_in import create_setup_link, recently_made_owner
from approvals.tests.cast import ORIGIN, Person, registered
from approvals.tests.recovering import begun
from audit.models import Event
from audit.services import SYSTEM, Actor
from registry.models import Grant, Human
from registry.roles import Role
from registry.services.roles import check_may_stop
from registry.tests.cast import TESTER, assert_refused
from registry.tests.written_rows import write

pytestmark = pytest.mark.django_db

OTHERS = [role for role in Role if role is not Role.OWNER]
LOOKERS = [role for role in OTHERS if role is not Role.OPERATOR]


@pytest.fixture
def second(keys: None, now: datetime) -> Person:
    return registered("second@example.org", "Sue Second", now=now, is_staff=True)


def form_of(person: Person) -> str:
    return f"/admin/humans/{person.human.pk}/role/"


def set_role(admin: Person, human: Human, role: str) -> Any:
    """Give the role on the page, signed."""
    shown = human.named_role or ""
    path = f"/admin/humans/{human.pk}/role/"
    return admin.press(path, {"role": role, "shown_role": str(shown)})


# --- Given and taken -----------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
def test_an_owner_invites_an_administrator_with_a_role(admin: Person, role: Role) -> None:
    page = admin.press("/admin/invite/", {"email": "two@example.org", "role": role})
    [(_label, link)] = page.context["made"]
    guest = Person()
    path = link.removeprefix(ORIGIN)
    assert "You will be an administrator" in guest.get(path).content.decode()
    guest.set_up(link, name="Second", email="two@example.org")
    assert (guest.human.role, guest.human.is_staff) == (role, role is Role.OWNER)
    assert guest.get("/admin/").status_code == 200
    made = Event.objects.get(kind="registry.human.created", human_id=guest.human.pk)
    assert made.data["role"] == role


def test_an_unknown_role_is_refused_and_the_address_stays_typed(admin: Person) -> None:
    page = admin.press("/admin/invite/", {"email": "two@example.org", "role": "root"})
    assert 'value="two@example.org"' in page.content.decode()
    assert not SetupCode.objects.filter(email="two@example.org").exists()


def test_SA_1_a_role_is_changed_with_a_passkey_and_shown_on_the_page(
    admin: Person, alice: Person
) -> None:
    human, path = alice.human, form_of(alice)
    assert_refused(admin.client.post(path, {"role": "auditor"}), 401, "verification_required")
    done = set_role(admin, human, "auditor")
    assert done["Location"] == row_page(human)
    told = Event.objects.get(kind="registry.human.role_changed")
    assert (told.human_id, told.actor_id) == (human.pk, str(admin.human.pk))
    assert told.data == {"role": "auditor", "before": None}
    page = admin.get(row_page(human)).content.decode()
    assert "The role of the account was changed to: Auditor" in page
    assert "<dd>Auditor</dd>" in page
    # Signed out, and an auditor from the next sign-in on.
    assert alice.get("/settings/").status_code == 302
    alice.sign_in()
    assert "Reads everything and exports lists." in alice.get("/settings/").content.decode()
    human.refresh_from_db()
    set_role(admin, human, "")
    human.refresh_from_db()
    assert (human.role, human.seal) == (None, None)


def test_lowering_a_role_counts_at_once_and_ends_what_it_began(
    admin: Person, second: Person, alice: Person, now: datetime
) -> None:
    lowered, signed = second.human, second.verification("/admin/enrolment-code/")
    page = second.press("/admin/invite/", {"email": "two@example.org", "role": "owner"})
    row = begun(alice.human, now, admin=lowered)
    set_role(admin, lowered, "operator")
    [(_label, link)] = page.context["made"]
    assert Person().get(link.removeprefix(ORIGIN)).status_code == 410
    assert Recovery.objects.get(pk=row.pk).cancelled_at is not None
    assert second.get("/admin/").status_code == 302
    second.sign_in()
    assert signed
    assert_refused(second.client.post("/admin/enrolment-code/"), 403, "permission_denied")


def test_no_one_changes_their_own_role_or_that_of_the_last_owner(
    admin: Person, second: Person, now: datetime
) -> None:
    page = set_role(admin, admin.human, "auditor").content.decode()
    assert "You cannot change your own role" in page
    assert admin.human.role is Role.OWNER
    set_role(admin, second.human, "approver")
    with pytest.raises(InvalidStateError, match="last owner"):
        change_role(human=admin.human, role=Role.AUDITOR, actor=TESTER, now=now)


def test_an_owner_that_no_service_made_does_not_count_as_another(
    admin: Person, bob: Person, now: datetime
) -> None:
    write(bob.human, is_staff=True)
    with pytest.raises(InvalidStateError, match="last owner"):
        change_role(human=admin.human, role=None, actor=TESTER, now=now)


def test_a_form_that_is_older_than_another_change_does_nothing(
    admin: Person, alice: Person, now: datetime
) -> None:
    human, path = alice.human, form_of(alice)
    change_role(human=human, role=Role.AUDITOR, actor=TESTER, now=now)
    page = admin.press(path, {"role": "owner", "shown_role": ""})
    assert "changed this role meanwhile" in page.content.decode()
    human.refresh_from_db()
    assert human.admin_role == "auditor"


def test_a_role_that_changed_before_the_lock_is_not_undone(bob: Person, now: datetime) -> None:
    """Of two owners who post at once, each read the row before the other changed it."""
    first, second = Human.objects.get(pk=bob.human.pk), Human.objects.get(pk=bob.human.pk)
    change_role(human=first, role=Role.AUDITOR, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError, match="changed this role meanwhile"):
        change_role(human=second, role=Role.OWNER, actor=TESTER, now=now)
    second.refresh_from_db()
    assert second.role is Role.AUDITOR


def test_no_role_is_given_twice_or_to_a_deleted_person(bob: Person, now: datetime) -> None:
    human = bob.human
    with pytest.raises(InvalidStateError, match="has this role already"):
        change_role(human=human, role=None, actor=TESTER, now=now)
    delete_human(human=human, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError, match="is deleted"):
        change_role(human=human, role=Role.AUDITOR, actor=TESTER, now=now)


def test_WR_15_an_owner_made_by_another_is_no_second_for_14_days(
    admin: Person, alice: Person, bob: Person, now: datetime
) -> None:
    made = bob.human
    by = Actor("human", str(admin.human.pk))
    change_role(human=made, role=Role.OWNER, by=admin.human, actor=by, now=now)
    row = start_recovery(human=alice.human, case="lost", admin=admin.human, actor=SYSTEM, now=now)
    with pytest.raises(InvalidStateError, match="was invited by another one"):
        confirm_recovery(recovery=row, admin=made, actor=SYSTEM, now=now)
    later = now + timedelta(days=14, seconds=1)
    assert not recently_made_owner(made, now=later)
    # One whom an operator made an owner takes part at once.
    change_role(human=made, role=None, actor=TESTER, now=later)
    change_role(human=made, role=Role.OWNER, actor=TESTER, now=later)
    assert not recently_made_owner(made, now=later)


# --- What a role may not do ----------------------------------------------------------------------


@pytest.mark.parametrize("action", ["suspend", "end_sessions"])
def test_an_operator_stops_people_and_no_administrator(
    admin: Person, alice: Person, now: datetime, action: str
) -> None:
    operator = registered("op@example.org", "Oz", now=now, role=Role.OPERATOR)
    auditor = registered("au@example.org", "Au", now=now, role=Role.AUDITOR)
    for subject in (admin.human, auditor.human):
        page = operator.get(row_page(subject)).content.decode()
        assert f'value="{action}"' not in page
        with pytest.raises(PermissionDeniedError):
            check_may_stop(operator.human, subject)
        chosen = {"action": action, "_selected_action": [str(subject.pk)]}
        operator.client.post("/admin/registry/human/", chosen)
        read = subject.session_epoch
        subject.refresh_from_db()
        assert (subject.status, subject.session_epoch) == ("active", read)
    human = alice.human
    assert f'value="{action}"' in operator.get(row_page(human)).content.decode()
    chosen = {"action": action, "_selected_action": [str(human.pk)]}
    operator.client.post("/admin/registry/human/", chosen)
    read = human.session_epoch
    human.refresh_from_db()
    assert human.session_epoch == read + 1


def test_only_owners_and_the_person_cancel_a_recovery(
    admin: Person, alice: Person, now: datetime
) -> None:
    row = begun(alice.human, now)
    for role in OTHERS:
        person = registered(f"{role}@example.org", str(role), now=now, role=role)
        assert_refused(person.post(f"/recovery/{row.pk}/cancel"), 403, "permission_denied")
    assert admin.client.post(f"/recovery/{row.pk}/cancel").status_code == 302


@pytest.mark.parametrize(
    "role",
    [Role.OPERATOR, *(pytest.param(each, marks=pytest.mark.long) for each in LOOKERS)],
)
def test_pages_offer_a_role_only_what_it_may_open_and_do(
    admin: Person, alice: Person, reading: Grant, now: datetime, role: Role
) -> None:
    """Every link of the pages that a role opens leads to a page that it may open."""
    begun(alice.human, now)
    create_setup_link(email="guest@example.org", actor=TESTER, now=now)
    person = registered("role@example.org", "Ro Le", now=now, role=role)
    waiting, seen, forms = ["/admin/"], {"/admin/"}, set[str]()
    while waiting:
        path = waiting.pop()
        page = person.get(path)
        assert page.status_code in {200, 302, 404}, (path, page.status_code)
        text = page.content.decode() if "html" in page["Content-Type"] else ""
        forms |= set(re.findall(r'<form[^>]* method="post"[^>]* action="([^"]+)"', text))
        if path.startswith("/admin/"):
            forms |= {f"{path} {name}" for name in re.findall(r'name="action" value="(\w+)"', text)}
        for link in re.findall(r'href="([^"#]+)"', text):
            found = link if link.startswith("/") else f"{path.split('?')[0]}{link}"
            place = found.split("?")[0]
            is_new = found not in seen and place.startswith(("/admin/", "/recoveries/", "/approv"))
            if is_new and not link.startswith("?") and len(seen) < LINKS:
                seen.add(found)
                waiting.append(found)
    assert len(seen) > 10
    assert {each.rpartition(" ")[2] for each in forms if " " in each} == OFFERED[role]
    own = {each for each in forms if each.startswith(("/approvers/", "/recover", "/endings/"))}
    assert own == set()


@pytest.mark.parametrize(
    ("role", "path"),
    [
        (Role.APPROVER, "/admin/audit/event/"),
        (Role.OPERATOR, "/admin/registry/grant/export.csv"),
        (Role.APPROVER, "/admin/registry/grant/export.csv"),
        (Role.AUDITOR, "/denials/"),
        (Role.OPERATOR, "/denials/"),
    ],
)
def test_DJ_17_a_role_opens_by_address_nothing_that_it_is_not_offered(
    now: datetime, role: Role, path: str
) -> None:
    person = registered("role@example.org", "Ro Le", now=now, role=role)
    assert_refused(person.get(path), 403, "permission_denied")


def test_DJ_17_a_suspended_administrator_has_no_permission(admin: Person) -> None:
    human = admin.human
    human.status = Human.Status.SUSPENDED
    assert (human.role, human.permissions) == (Role.OWNER, frozenset())


# Enough for every list and a page of each kind of row.
LINKS = 120
OFFERED: dict[Role, set[str]] = {
    Role.AUDITOR: set(),
    Role.OPERATOR: {"suspend", "end_sessions", "rotate"},
    Role.APPROVER: {"deny"},
}


# --- Forged --------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", OTHERS)
def test_DJ_17_a_role_written_by_sql_gives_nothing(bob: Person, role: Role) -> None:
    write(bob.human, admin_role=role)
    assert bob.human.permissions == frozenset()
    assert bob.get("/admin/").status_code == 302


def test_DJ_17_a_role_raised_by_sql_gives_nothing_at_all(admin: Person, now: datetime) -> None:
    auditor = registered("au@example.org", "Au", now=now, role=Role.AUDITOR)
    before = Human.objects.filter(pk=auditor.human.pk).values("admin_role", "seal").get()
    for changes in (
        {"admin_role": "approver"},
        {"is_staff": True, "admin_role": None},
        {"is_staff": True, "admin_role": None, "seal": admin.human.seal},
    ):
        write(auditor.human, **changes)
        assert auditor.human.permissions == frozenset(), changes
        assert auditor.get("/admin/").status_code == 302
        write(auditor.human, is_staff=False, **before)


def test_DJ_17_a_former_role_that_is_set_back_gives_nothing(alice: Person, now: datetime) -> None:
    human = alice.human
    change_role(human=human, role=Role.APPROVER, actor=TESTER, now=now)
    before = Human.objects.filter(pk=human.pk).values("admin_role", "seal").get()
    change_role(human=human, role=Role.AUDITOR, actor=TESTER, now=now)
    write(human, **before)
    assert Human.objects.get(pk=human.pk).fits()
    assert Human.objects.get(pk=human.pk).permissions == frozenset()


def test_DJ_17_an_invitation_whose_role_was_written_by_sql_does_not_open(now: datetime) -> None:
    link = create_setup_link(
        email="zoe@example.org", role=Role.AUDITOR, actor=TESTER, now=timezone.now()
    )
    path = link.url.removeprefix(ORIGIN)
    assert Person().get(path).status_code == 200
    for role in ("approver", None):
        SetupCode.objects.filter(email="zoe@example.org").update(admin_role=role)
        assert Person().get(path).status_code == 404
