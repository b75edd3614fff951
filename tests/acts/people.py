"""What people do on the pages."""

from typing import Any

from approvals.models import HumanSession, Passkey
from approvals.services.continue_after_restore import continue_after_restore
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import ORIGIN, Person
from approvals.tests.notifying import by_mail, by_webhook
from approvals.tests.push_service import SubscribedBrowser
from approvals.tests.recovering import begun, path_of, ready_link
from approvals.tests.webhook_receiver import Receiver
from audit import kinds
from registry.models import Grant
from registry.services.grants import suspend_grant
from registry.tests.cast import PAY, TESTER, pending
from tests.acts.world import Act, World, act

CHOICES = {"choices": {"permission.0": "on"}}
REFUSED = (kinds.REQUEST_REFUSED,)


@act("POST sign-in/options")
def a_sign_in_begins(_world: World) -> Act:
    return lambda: Person().post("/sign-in/options")


@act("POST sign-in/finish", kinds.HUMAN_SIGNED_IN)
def a_human_signs_in(world: World) -> Act:
    person = Person(device=world.alice.device)
    options = person.post("/sign-in/options").json()["publicKey"]
    credential = person.device.assertion(options)
    return lambda: person.post("/sign-in/finish", {"credential": credential})


@act("POST sign-in/finish", edge=REFUSED)
def a_stranger_does_not_sign_in(_world: World) -> Act:
    person = Person()
    options = person.post("/sign-in/options").json()["publicKey"]
    return lambda: person.post("/sign-in/finish", {"credential": person.device.assertion(options)})


@act("POST sign-out/", kinds.HUMAN_SIGNED_OUT)
def a_human_signs_out(world: World) -> Act:
    alice = world.alice
    return lambda: alice.post("/sign-out/")


@act("POST sign-out/", kinds.HUMAN_SIGNED_OUT, kinds.PRESENCE_ENDED)
def a_human_who_is_here_signs_out(world: World) -> Act:
    alice = world.alice
    _presence(alice)()
    return lambda: alice.post("/sign-out/")


@act("POST setup/<str:code>/options")
def a_setup_begins(world: World) -> Act:
    path = _invitation(world)
    return lambda: Person().post(f"{path}options", {"name": "Zoe", "email": "zoe@example.org"})


@act("POST setup/<str:code>/finish", kinds.HUMAN_CREATED, kinds.PASSKEY_CREATED)
def a_human_comes_in(world: World) -> Act:
    return _set_up(_invitation(world))


@act("POST recover/<str:code>/options")
def a_human_begins_to_use_a_recovery_link(world: World) -> Act:
    path = path_of(ready_link(world.alice.human, world.now))
    return lambda: Person().post(f"{path}options")


@act(
    "POST recover/<str:code>/finish",
    kinds.HUMAN_RECOVERED,
    kinds.PASSKEY_CREATED,
    kinds.PASSKEY_REMOVED,
    kinds.HUMAN_SESSIONS_ENDED,
    kinds.GRANT_SUSPENDED,
    kinds.CHANNEL_REMOVED,
)
def a_human_is_recovered(world: World) -> Act:
    assert world.grant
    by_webhook(world.alice.human, world.now, "https://hooks.example.org/")
    return _set_up(path_of(ready_link(world.alice.human, world.now)))


@act("POST recovery/<uuid:recovery_id>/cancel", kinds.RECOVERY_CANCELLED)
def a_human_cancels_a_recovery(world: World) -> Act:
    alice, row = world.alice, begun(world.alice.human, world.now)
    return lambda: alice.client.post(f"/recovery/{row.pk}/cancel")


def _invitation(world: World) -> str:
    return create_setup_link(email="zoe@example.org", actor=TESTER, now=world.now).url.removeprefix(
        ORIGIN
    )


def _set_up(path: str) -> Act:
    person = Person()
    options = person.post(f"{path}options", {"name": "Zoe", "email": "zoe@example.org"}).json()[
        "publicKey"
    ]
    credential = person.device.registration(options)
    return lambda: person.post(f"{path}finish", {"credential": credential})


@act("POST approvals/<uuid:grant_id>/review")
def a_human_looks_at_their_choices(world: World) -> Act:
    return _asked(world, world.request, "review")


@act("POST approvals/<uuid:grant_id>/review-denial")
def a_human_reads_the_denial_with_their_reason(world: World) -> Act:
    person, grant = world.alice, world.request
    body = {"reason": "No", "drawn": person.denial_drawn(grant)}
    return lambda: person.post(f"/approvals/{grant.pk}/review-denial", body)


@act("POST approvals/<uuid:grant_id>/statement")
def a_human_is_asked_for_a_signature(world: World) -> Act:
    return _asked(world, world.request, "statement", decision="approve")


@act("POST approvals/<uuid:grant_id>/second-step", kinds.SECOND_STEP_TAKEN)
def a_human_goes_on_past_the_warning(world: World) -> Act:
    return _asked(world, _request_to_pay(world), "second-step")


@act("POST approvals/<uuid:grant_id>/statement", edge=("audit.request.refused",))
def a_human_skips_the_warning(world: World) -> Act:
    return _asked(world, _request_to_pay(world), "statement", decision="approve")


def _request_to_pay(world: World) -> Grant:
    return pending(world.agent, world.provider, now=world.now, capabilities=[PAY])


def _asked(world: World, grant: Grant, act: str, **more: Any) -> Act:
    alice, drawn = world.alice, world.alice.drawn(grant)
    return lambda: alice.ask(grant, act, drawn=drawn, **more)


@act("POST approvals/<uuid:grant_id>/decide", kinds.GRANT_APPROVED)
def a_human_approves(world: World) -> Act:
    return _decision(world, world.request, "approve")


@act("POST approvals/<uuid:grant_id>/decide", kinds.GRANT_APPROVED)
def a_human_signs_a_suspended_grant_again(world: World) -> Act:
    recovery = Grant.SuspensionCause.RECOVERY
    suspend_grant(grant=world.grant, cause=recovery, actor=TESTER, now=world.now)
    return _decision(world, world.grant, "approve")


@act("POST approvals/<uuid:grant_id>/renew", kinds.GRANT_RENEWAL_REQUESTED)
def a_human_asks_to_renew_a_grant(world: World) -> Act:
    return _renewal_of(world)


@act("POST approvals/<uuid:grant_id>/decide", kinds.GRANT_RENEWED)
def a_human_renews_a_grant(world: World) -> Act:
    _renewal_of(world)()
    return _decision(world, world.grant, "approve")


def _renewal_of(world: World) -> Act:
    Grant.objects.filter(pk=world.grant.pk).update(requested_seconds=90 * 86_400)
    alice, path = world.alice, f"/approvals/{world.grant.pk}/renew"
    return lambda: alice.client.post(path)


@act("POST approvals/<uuid:grant_id>/decide", kinds.GRANT_DENIED)
def a_human_denies(world: World) -> Act:
    return _decision(world, world.request, "deny")


@act("POST approvals/<uuid:grant_id>/decide")
def a_human_presses_approve_twice(world: World) -> Act:
    decide = _decision(world, world.request, "approve")
    decide()
    return decide


def _decision(world: World, grant: Grant, decision: str) -> Act:
    drawn = world.alice.drawn(grant) if decision == "approve" else world.alice.denial_drawn(grant)
    return world.signed(
        world.alice, f"/approvals/{grant.pk}/", CHOICES | {"drawn": drawn, "decision": decision}
    )


@act("POST claim/<str:secret>/statement")
def a_human_types_the_code_of_an_agent(world: World) -> Act:
    path, code = _claim(world)
    alice = world.alice
    drawn = alice.drawn_at(path)
    return lambda: alice.post(f"{path}statement", {"code": code, "drawn": drawn})


@act("POST claim/<str:secret>/statement", kinds.AGENT_CLAIM_FAILED)
def a_human_types_a_wrong_code(world: World) -> Act:
    path, _ = _claim(world)
    alice = world.alice
    drawn = alice.drawn_at(path)
    return lambda: alice.post(f"{path}statement", {"code": "wrong", "drawn": drawn})


@act("POST claim/<str:secret>/decide", kinds.AGENT_CLAIMED)
def a_human_claims_an_agent(world: World) -> Act:
    path, code = _claim(world)
    return world.signed(world.alice, path, {"code": code})


def _claim(world: World) -> tuple[str, str]:
    _, answer = world.stray()
    return answer["claim_url"].removeprefix(ORIGIN), answer["claim_code"]


@act("POST confirmations/<uuid:confirmation_id>/statement")
def a_human_is_asked_to_confirm(world: World) -> Act:
    path, alice = f"/confirmations/{world.confirmation().pk}/", world.alice
    drawn = alice.drawn_at(path)
    return lambda: alice.post(f"{path}statement", {"decision": "confirm", "drawn": drawn})


@act("POST confirmations/<uuid:confirmation_id>/decide", kinds.CONFIRMATION_CONFIRMED)
def a_human_confirms(world: World) -> Act:
    path = f"/confirmations/{world.confirmation().pk}/"
    return world.signed(world.alice, path, {"decision": "confirm"})


@act("POST confirmations/<uuid:confirmation_id>/decide", kinds.CONFIRMATION_DENIED)
def a_human_does_not_confirm(world: World) -> Act:
    return world.signed(
        world.alice, f"/confirmations/{world.confirmation().pk}/", {"decision": "deny"}
    )


@act("POST restores/<str:name>/statement")
def an_admin_is_asked_to_sign_a_break(world: World) -> Act:
    path, admin = _restored(world), world.admin
    drawn = admin.drawn_at(path)
    return lambda: admin.post(f"{path}statement", {"decision": "continue", "drawn": drawn})


@act("POST restores/<str:name>/decide", kinds.BREAK_SIGNED)
def an_admin_signs_that_the_log_goes_on(world: World) -> Act:
    path = _restored(world)
    return world.signed(world.admin, path, {"decision": "continue"})


def _restored(world: World) -> str:
    done = continue_after_restore(operator="alice", undetected=True, actor=TESTER, now=world.past())
    return f"/restores/{done.log}/"


@act("POST agents/suspend-all/suspend", kinds.AGENT_SUSPENDED)
def a_human_suspends_all_their_agents(world: World) -> Act:
    assert world.agent
    alice = world.alice
    return lambda: alice.post("/agents/suspend-all/suspend")


@act("POST agents/<uuid:agent_id>/suspend", kinds.AGENT_SUSPENDED)
def a_human_suspends_their_agent(world: World) -> Act:
    return _of_agent(world, "suspend")


@act("POST agents/<uuid:agent_id>/resume/statement")
def a_human_is_asked_to_resume_their_agent(world: World) -> Act:
    _of_agent(world, "suspend")()
    alice, path = world.alice, f"/agents/{world.agent.agent().pk}/resume/"
    drawn = alice.drawn_at(path)
    return lambda: alice.post(f"{path}statement", {"drawn": drawn})


@act("POST agents/<uuid:agent_id>/resume/decide", kinds.AGENT_RESUMED)
def a_human_resumes_their_agent(world: World) -> Act:
    _of_agent(world, "suspend")()
    return world.signed(world.alice, f"/agents/{world.agent.agent().pk}/resume/", {})


@act("POST approvals/<uuid:grant_id>/resume/statement")
def a_human_is_asked_to_resume_a_grant(world: World) -> Act:
    suspend_grant(grant=world.grant, actor=TESTER, now=world.now)
    alice, path = world.alice, f"/approvals/{world.grant.pk}/resume/"
    drawn = alice.drawn_at(path)
    return lambda: alice.post(f"{path}statement", {"drawn": drawn})


@act("POST approvals/<uuid:grant_id>/resume/decide", kinds.GRANT_RESUMED)
def a_human_resumes_a_grant(world: World) -> Act:
    suspend_grant(grant=world.grant, actor=TESTER, now=world.now)
    return world.signed(world.alice, f"/approvals/{world.grant.pk}/resume/", {})


@act(
    "POST agents/<uuid:agent_id>/revoke/<str:shown>",
    kinds.HUMAN_VERIFIED,
    kinds.AGENT_REVOKED,
    kinds.GRANT_WITHDRAWN,
)
def a_human_revokes_their_agent(world: World) -> Act:
    assert world.grant
    assert world.request
    return world.alice.ready_to_end(f"/agents/{world.agent.agent().pk}/revoke/")


@act("POST approvals/<uuid:grant_id>/revoke/<str:shown>", kinds.GRANT_REVOKED)
def a_human_revokes_a_grant(world: World) -> Act:
    return world.alice.ready_to_end(f"/approvals/{world.grant.pk}/revoke/")


def _of_agent(world: World, act: str) -> Act:
    alice, path = world.alice, f"/agents/{world.agent.agent().pk}/{act}"
    return lambda: alice.post(path)


@act("POST verify/options")
def a_human_is_asked_to_sign_for_an_act(world: World) -> Act:
    alice = world.alice
    return lambda: alice.post("/verify/options", {"act": "/settings/enrolment-codes"})


@act("POST settings/passkeys/options", kinds.HUMAN_VERIFIED)
def a_human_begins_another_passkey(world: World) -> Act:
    path, alice = "/settings/passkeys/options", world.alice
    verification = alice.verification(path)
    return lambda: alice.post(path, {"verification": verification})


@act("POST settings/passkeys/finish", kinds.PASSKEY_CREATED)
def a_human_adds_a_passkey(world: World) -> Act:
    return _second_passkey(world.alice)


@act("POST settings/passkeys/<uuid:passkey_id>/rename", kinds.PASSKEY_RENAMED)
def a_human_renames_a_passkey(world: World) -> Act:
    alice, mine = world.alice, Passkey.objects.get(human=world.alice.human)
    path = f"/settings/passkeys/{mine.pk}/rename"
    return lambda: alice.client.post(path, {"name": "Telephone"})


@act(
    "POST settings/passkeys/<uuid:passkey_id>/remove",
    kinds.HUMAN_VERIFIED,
    kinds.PASSKEY_REMOVED,
    kinds.HUMAN_SESSIONS_ENDED,
)
def a_human_removes_a_passkey(world: World) -> Act:
    _second_passkey(world.alice)()
    added = Passkey.objects.filter(human=world.alice.human).latest("created_at")
    return world.form(world.alice, f"/settings/passkeys/{added.pk}/remove")


def _second_passkey(person: Person) -> Act:
    credential = Authenticator().registration(person.ask_passkey().json()["publicKey"])
    return lambda: person.post("/settings/passkeys/finish", {"credential": credential})


@act("POST settings/enrolment-codes", kinds.HUMAN_VERIFIED, kinds.ENROLMENT_CODE_CREATED)
def a_human_makes_an_enrolment_code(world: World) -> Act:
    return world.form(world.alice, "/settings/enrolment-codes")


CHOICES_OF_A_CHANNEL = {"requests": "on", "security": "on"}


@act("POST settings/notifications/email", kinds.HUMAN_VERIFIED, kinds.CHANNEL_ADDED)
def a_human_switches_mail_on(world: World) -> Act:
    return world.form(world.alice, "/settings/notifications/email", **CHOICES_OF_A_CHANNEL)


@act("POST settings/notifications/webhooks", kinds.HUMAN_VERIFIED, kinds.CHANNEL_ADDED)
def a_human_adds_a_webhook(world: World) -> Act:
    fields = CHOICES_OF_A_CHANNEL | {"url": "https://hooks.example.org/alice"}
    return world.form(world.alice, "/settings/notifications/webhooks", **fields)


@act("POST settings/notifications/browsers", kinds.HUMAN_VERIFIED, kinds.CHANNEL_ADDED)
def a_human_adds_a_browser(world: World) -> Act:
    fields = CHOICES_OF_A_CHANNEL | SubscribedBrowser(Receiver(port=1)).fields
    return world.form(world.alice, "/settings/notifications/browsers", **fields)


@act(
    "POST settings/notifications/<uuid:channel_id>/change",
    kinds.HUMAN_VERIFIED,
    kinds.CHANNEL_CHANGED,
)
def a_human_changes_what_they_are_told(world: World) -> Act:
    channel = by_mail(world.alice.human, world.now)
    return world.form(world.alice, f"/settings/notifications/{channel.pk}/change", requests="on")


@act(
    "POST settings/notifications/<uuid:channel_id>/remove",
    kinds.HUMAN_VERIFIED,
    kinds.CHANNEL_REMOVED,
)
def a_human_is_no_longer_told(world: World) -> Act:
    channel = by_mail(world.alice.human, world.now)
    return world.form(world.alice, f"/settings/notifications/{channel.pk}/remove")


@act("POST settings/time-zone", kinds.HUMAN_CHANGED)
def a_human_moves_to_another_zone(world: World) -> Act:
    alice = world.alice
    return lambda: alice.client.post("/settings/time-zone", {"time_zone": "Europe/Berlin"})


@act("POST language", kinds.HUMAN_CHANGED)
def a_human_reads_another_language(world: World) -> Act:
    alice = world.alice
    return lambda: alice.client.post("/language", {"language": "de"})


@act("POST settings/data", kinds.HUMAN_VERIFIED, kinds.HUMAN_EXPORTED)
def a_human_downloads_their_data(world: World) -> Act:
    return world.form(world.alice, "/settings/data")


@act("POST settings/sessions/end-others", kinds.HUMAN_SESSIONS_ENDED)
def a_human_signs_out_everywhere_else(world: World) -> Act:
    alice = world.alice
    return lambda: alice.post("/settings/sessions/end-others")


@act("POST settings/sessions/<uuid:session_id>/end", kinds.HUMAN_SIGNED_OUT)
def a_human_signs_another_browser_out(world: World) -> Act:
    alice = world.alice
    Person(device=alice.device).sign_in()
    other = HumanSession.objects.filter(human=alice.human).latest("pk")
    return lambda: alice.post(f"/settings/sessions/{other.pk}/end")


@act("POST presence/options")
def a_human_is_asked_whether_they_are_here(world: World) -> Act:
    alice = world.alice
    return lambda: alice.post("/presence/options")


@act("POST presence/begin", kinds.PRESENCE_BEGUN)
def a_human_says_that_they_are_here(world: World) -> Act:
    return _presence(world.alice)


@act("POST presence/renew", quiet="it makes nothing true that was not so before")
def an_open_page_says_that_they_are_still_here(world: World) -> Act:
    alice = world.alice
    _presence(alice)()
    return lambda: alice.post("/presence/renew")


@act("POST presence/end", kinds.PRESENCE_ENDED)
def a_human_says_that_they_are_gone(world: World) -> Act:
    alice = world.alice
    _presence(alice)()
    return lambda: alice.post("/presence/end")


def _presence(person: Person) -> Act:
    credential = person.device.assertion(person.post("/presence/options").json()["publicKey"])
    return lambda: person.post("/presence/begin", {"credential": credential})
