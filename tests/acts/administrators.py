"""What administrators do in the control room, and on the pages where they sign for their choice."""

from datetime import datetime

from approvals.models import Notification, SetupCode
from approvals.notifications.outbox import tell_channels
from approvals.services.human_suspension_and_erasure import change_role, suspend_human
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.tests.notifying import by_mail
from approvals.tests.recovering import DAY, begun
from audit import kinds
from registry.models import Human
from registry.roles import Role
from registry.services.agents import suspend_agent
from registry.services.grants import suspend_grant
from registry.services.service_providers import rotate_secret, suspend_service_provider
from registry.tests.cast import TESTER
from registry.tests.describing import proposed
from registry.tests.logos import logo, picture
from tests.acts.world import Act, World, act

What = Notification.What
AGENT, GRANT = "POST admin/registry/agent/", "POST admin/registry/grant/"
PROVIDER, HUMAN = "POST admin/registry/serviceprovider/", "POST admin/registry/human/"
ENDING = "POST endings/<str:kind>/<str:shown>"
RESUME = "POST resume/<str:kind>/<uuid:row_id>/decide"


@act(f"{AGENT} suspend", kinds.AGENT_SUSPENDED)
def an_admin_suspends_an_agent(world: World) -> Act:
    return world.button(world.agent.agent(), "suspend")


@act(f"{AGENT} resume")
def an_admin_chooses_agents_to_resume(world: World) -> Act:
    suspend_agent(agent=world.agent.agent(), actor=TESTER, now=world.now, by_admin=True)
    return world.button(world.agent.agent(), "resume")


@act("POST resume/<str:kind>/<uuid:row_id>/statement")
def an_admin_is_asked_to_resume_an_agent(world: World) -> Act:
    suspend_agent(agent=world.agent.agent(), actor=TESTER, now=world.now, by_admin=True)
    path, admin = f"/resume/agent/{world.agent.agent().pk}/", world.admin
    drawn = admin.drawn_at(path)
    return lambda: admin.post(f"{path}statement", {"drawn": drawn})


@act(RESUME, kinds.AGENT_RESUMED)
def an_admin_resumes_an_agent(world: World) -> Act:
    suspend_agent(agent=world.agent.agent(), actor=TESTER, now=world.now, by_admin=True)
    return world.signed(world.admin, f"/resume/agent/{world.agent.agent().pk}/", {})


@act(f"{AGENT} revoke")
def an_admin_chooses_agents_to_revoke(world: World) -> Act:
    return world.button(world.request.agent, "revoke")


@act(ENDING, kinds.HUMAN_VERIFIED, kinds.AGENT_REVOKED, kinds.GRANT_WITHDRAWN)
def an_admin_revokes_an_agent(world: World) -> Act:
    return world.admin.ready_to_end(f"/endings/agent/?id={world.request.agent.pk}")


@act(f"{GRANT} deny")
def an_admin_chooses_requests_to_deny(world: World) -> Act:
    return world.button(world.request, "deny")


@act("POST admin/approvals/notification/ send_again", kinds.NOTIFICATION_RETRIED)
def an_admin_has_a_message_sent_again(world: World) -> Act:
    tell_channels([by_mail(world.alice.human, world.now)], what=What.PASSKEY_ADDED, now=world.now)
    Notification.objects.update(state="dead", ended_at=world.now)
    return world.button(Notification.objects.get(), "send_again")


@act("POST denials/<uuid:request_id>/review")
def an_admin_reads_the_denial_with_its_reason(world: World) -> Act:
    path, body, admin = *_denial(world), world.admin
    return lambda: admin.post(f"{path}review", body)


@act("POST denials/<uuid:request_id>/statement")
def an_admin_is_asked_to_deny_a_request(world: World) -> Act:
    path, body, admin = *_denial(world), world.admin
    return lambda: admin.post(f"{path}statement", body)


@act("POST denials/<uuid:request_id>/decide", kinds.GRANT_DENIED)
def an_admin_denies_a_request(world: World) -> Act:
    path, body = _denial(world)
    return world.signed(world.admin, path, body)


def _denial(world: World) -> tuple[str, dict[str, str]]:
    path = f"/denials/{world.request.pk}/"
    context = world.admin.get(path).context
    return path, {"reason": context["reason"], "drawn": context["denial"].drawn}


@act(f"{GRANT} suspend", kinds.GRANT_SUSPENDED)
def an_admin_suspends_a_grant(world: World) -> Act:
    return world.button(world.grant, "suspend")


@act(f"{GRANT} suspend", kinds.REQUEST_REFUSED)
def an_admin_cannot_suspend_a_request(world: World) -> Act:
    return world.button(world.request, "suspend")


@act(f"{GRANT} resume")
def an_admin_chooses_grants_to_resume(world: World) -> Act:
    suspend_grant(grant=world.grant, actor=TESTER, now=world.now, by_admin=True)
    return world.button(world.grant, "resume")


@act(RESUME, kinds.GRANT_RESUMED)
def an_admin_resumes_a_grant(world: World) -> Act:
    suspend_grant(grant=world.grant, actor=TESTER, now=world.now, by_admin=True)
    return world.signed(world.admin, f"/resume/grant/{world.grant.pk}/", {})


@act(f"{GRANT} revoke")
def an_admin_chooses_grants_to_revoke(world: World) -> Act:
    return world.button(world.grant, "revoke")


@act(ENDING, kinds.HUMAN_VERIFIED, kinds.GRANT_REVOKED)
def an_admin_revokes_a_grant(world: World) -> Act:
    return world.admin.ready_to_end(f"/endings/grant/?id={world.grant.pk}")


@act(f"{PROVIDER} suspend", kinds.SERVICE_PROVIDER_SUSPENDED)
def an_admin_suspends_a_service_provider(world: World) -> Act:
    return world.button(world.provider, "suspend")


@act(f"{PROVIDER} resume")
def an_admin_chooses_service_providers_to_resume(world: World) -> Act:
    suspend_service_provider(service_provider=world.provider, actor=TESTER, now=world.now)
    return world.button(world.provider, "resume")


@act(RESUME, kinds.SERVICE_PROVIDER_RESUMED)
def an_admin_resumes_a_service_provider(world: World) -> Act:
    suspend_service_provider(service_provider=world.provider, actor=TESTER, now=world.now)
    return world.signed(world.admin, f"/resume/service_provider/{world.provider.pk}/", {})


@act(f"{PROVIDER} revoke")
def an_admin_chooses_service_providers_to_revoke(world: World) -> Act:
    return world.button(world.provider, "revoke")


@act(ENDING, kinds.HUMAN_VERIFIED, kinds.SERVICE_PROVIDER_REVOKED)
def an_admin_revokes_a_service_provider(world: World) -> Act:
    return world.admin.ready_to_end(f"/endings/service_provider/?id={world.provider.pk}")


@act(f"{HUMAN} suspend", kinds.HUMAN_SUSPENDED)
def an_admin_suspends_a_human(world: World) -> Act:
    return world.button(world.alice.human, "suspend")


@act(f"{HUMAN} suspend", kinds.RECOVERY_CANCELLED, kinds.HUMAN_SUSPENDED)
def an_admin_suspends_a_human_who_is_being_recovered(world: World) -> Act:
    begun(world.alice.human, world.now)
    return world.button(world.alice.human, "suspend")


@act(f"{HUMAN} resume")
def an_admin_chooses_humans_to_resume(world: World) -> Act:
    return world.button(_suspended(world), "resume")


@act(RESUME, kinds.HUMAN_RESUMED)
def an_admin_resumes_a_human(world: World) -> Act:
    return world.signed(world.admin, f"/resume/human/{_suspended(world).pk}/", {})


def _suspended(world: World) -> Human:
    human = world.alice.human
    suspend_human(human=human, actor=TESTER, now=world.now)
    return human


@act(f"{HUMAN} end_sessions", kinds.HUMAN_SESSIONS_ENDED)
def an_admin_signs_a_human_out(world: World) -> Act:
    return world.button(world.alice.human, "end_sessions")


@act("POST admin/invite/", kinds.HUMAN_VERIFIED, kinds.SETUP_CODE_CREATED)
def an_admin_invites(world: World) -> Act:
    return world.form(world.admin, "/admin/invite/", email="zoe@example.org")


@act("POST admin/invite/", kinds.HUMAN_VERIFIED, kinds.SETUP_CODE_CREATED)
def an_admin_invites_an_auditor(world: World) -> Act:
    return world.form(world.admin, "/admin/invite/", email="zoe@example.org", role="auditor")


ROLE = "POST admin/humans/<uuid:human_id>/role/"


@act(ROLE, kinds.HUMAN_VERIFIED, kinds.HUMAN_ROLE_CHANGED)
def an_admin_makes_a_human_an_operator(world: World) -> Act:
    path = f"/admin/humans/{world.alice.human.pk}/role/"
    return world.form(world.admin, path, role="operator")


@act(ROLE, kinds.HUMAN_VERIFIED, kinds.RECOVERY_CANCELLED, kinds.HUMAN_ROLE_CHANGED)
def an_admin_takes_the_role_of_a_human_who_is_being_recovered(world: World) -> Act:
    human = world.alice.human
    change_role(human=human, role=Role.AUDITOR, actor=TESTER, now=world.now)
    begun(human, world.now)
    path = f"/admin/humans/{human.pk}/role/"
    return world.form(world.admin, path, role="", shown_role="auditor")


@act("POST admin/approvals/setupcode/ forget")
def an_admin_chooses_invitations_to_forget(world: World) -> Act:
    return world.button(unused_invitation(world.now), "forget")


@act(ENDING, kinds.HUMAN_VERIFIED, kinds.INVITATION_ERASED)
def an_admin_forgets_an_invitation(world: World) -> Act:
    return world.admin.ready_to_end(f"/endings/invitation/?id={unused_invitation(world.now).pk}")


def unused_invitation(at: datetime) -> SetupCode:
    create_setup_link(email="zoe@example.org", actor=TESTER, now=at)
    return SetupCode.objects.get(email="zoe@example.org")


@act("POST recoveries/<uuid:human_id>/lost", kinds.HUMAN_VERIFIED, kinds.RECOVERY_BEGUN)
def an_admin_begins_a_recovery(world: World) -> Act:
    return world.form(world.admin, f"/recoveries/{world.alice.human.pk}/lost")


@act("POST recoveries/<uuid:human_id>/stolen", kinds.HUMAN_VERIFIED, kinds.RECOVERY_BEGUN)
def an_admin_begins_the_recovery_of_a_suspended_human(world: World) -> Act:
    return world.form(world.admin, f"/recoveries/{_suspended(world).pk}/stolen")


@act("POST recoveries/<uuid:recovery_id>/confirm", kinds.HUMAN_VERIFIED, kinds.RECOVERY_CONFIRMED)
def a_second_admin_decides_a_recovery(world: World) -> Act:
    row = begun(world.alice.human, world.now)
    return world.form(world.admin, f"/recoveries/{row.pk}/confirm")


@act("POST recoveries/<uuid:recovery_id>/link", kinds.HUMAN_VERIFIED, kinds.SETUP_CODE_CREATED)
def an_admin_makes_a_recovery_link(world: World) -> Act:
    row = begun(world.alice.human, world.now - DAY)
    return world.form(world.admin, f"/recoveries/{row.pk}/link")


@act(RESUME, kinds.RECOVERY_CANCELLED, kinds.HUMAN_RESUMED)
def an_admin_resumes_a_human_who_was_being_recovered(world: World) -> Act:
    human = _suspended(world)
    begun(human, world.now, case="stolen")
    return world.signed(world.admin, f"/resume/human/{human.pk}/", {})


@act(f"{HUMAN} delete")
def an_admin_chooses_humans_to_delete(world: World) -> Act:
    return world.button(world.alice.human, "delete")


@act(
    ENDING,
    kinds.HUMAN_VERIFIED,
    kinds.PASSKEY_REMOVED,
    kinds.GRANT_REVOKED,
    kinds.AGENT_REVOKED,
    kinds.GRANT_WITHDRAWN,
    kinds.HUMAN_DELETED,
    kinds.HUMAN_ERASED,
)
def an_admin_deletes_a_human(world: World) -> Act:
    assert world.grant
    assert world.request
    return world.admin.ready_to_end(f"/endings/human/?id={world.alice.human.pk}")


@act("POST admin/enrolment-code/", kinds.HUMAN_VERIFIED, kinds.ENROLMENT_CODE_CREATED)
def an_admin_makes_an_enrolment_code(world: World) -> Act:
    return world.form(world.admin, "/admin/enrolment-code/", human=str(world.alice.human.pk))


PROVIDERS = "POST admin/service-providers/<uuid:service_provider_id>/"


@act(
    f"{PROVIDERS}change/",
    kinds.HUMAN_VERIFIED,
    kinds.SERVICE_PROVIDER_AUDIENCE_CHANGED,
    kinds.SERVICE_PROVIDER_ALLOWED_CHANGED,
)
def an_admin_moves_a_service_provider_and_lets_agents_ask_for_more(world: World) -> Act:
    row = world.provider
    shown = "\n".join(row.allowed)
    return world.form(
        world.admin,
        f"/admin/service-providers/{row.pk}/change/",
        audience="https://acme.example",
        allowed=f"{shown}\nread:files",
        shown_audience=row.audience,
        shown_allowed=shown,
    )


@act(f"{PROVIDERS}rotate-secret/", kinds.HUMAN_VERIFIED, kinds.SERVICE_PROVIDER_SECRET_ROTATED)
def an_admin_rotates_the_secret_of_a_service_provider(world: World) -> Act:
    return world.form(world.admin, f"/admin/service-providers/{world.provider.pk}/rotate-secret/")


@act(
    f"{PROVIDERS}end-previous-secrets/",
    kinds.HUMAN_VERIFIED,
    kinds.SERVICE_PROVIDER_SECRETS_ENDED,
)
def an_admin_ends_the_previous_secrets_of_a_service_provider(world: World) -> Act:
    rotate_secret(service_provider=world.provider, actor=TESTER, now=world.now)
    path = f"/admin/service-providers/{world.provider.pk}/end-previous-secrets/"
    return world.form(world.admin, path)


@act("POST catalogues/<uuid:catalogue_id>/statement")
def an_admin_is_asked_to_approve_a_catalogue(world: World) -> Act:
    path, admin = f"/catalogues/{proposed(world.provider, world.now).pk}/", world.admin
    drawn = admin.drawn_at(path)
    return lambda: admin.post(f"{path}statement", {"drawn": drawn})


@act("POST catalogues/<uuid:catalogue_id>/decide", kinds.CATALOGUE_APPROVED)
def an_admin_approves_a_catalogue(world: World) -> Act:
    path = f"/catalogues/{proposed(world.provider, world.now).pk}/"
    return world.signed(world.admin, path, {})


@act("POST catalogues/<uuid:catalogue_id>/refuse", kinds.CATALOGUE_REFUSED)
def an_admin_refuses_a_catalogue(world: World) -> Act:
    path, admin = f"/catalogues/{proposed(world.provider, world.now).pk}/", world.admin
    return lambda: admin.client.post(f"{path}refuse")


LOGOS = "POST logos/<uuid:service_provider_id>/"


@act(f"{LOGOS}upload", kinds.LOGO_PROPOSED)
def an_admin_uploads_a_logo(world: World) -> Act:
    path, data, admin = f"/logos/{world.provider.pk}/upload", picture(), world.admin
    return lambda: admin.client.post(path, data, content_type="application/octet-stream")


@act(f"{LOGOS}statement")
def an_admin_is_asked_to_approve_a_logo(world: World) -> Act:
    path, admin = f"/logos/{logo(world.provider, world.now).service_provider_id}/", world.admin
    drawn = admin.drawn_at(path)
    return lambda: admin.post(f"{path}statement", {"drawn": drawn})


@act(f"{LOGOS}decide", kinds.LOGO_APPROVED)
def an_admin_approves_a_logo(world: World) -> Act:
    path = f"/logos/{logo(world.provider, world.now).service_provider_id}/"
    return world.signed(world.admin, path, {})


@act(f"{LOGOS}remove", kinds.LOGO_REMOVED)
def an_admin_removes_a_logo(world: World) -> Act:
    row, admin = logo(world.provider, world.now), world.admin
    path = f"/logos/{row.service_provider_id}/remove"
    return lambda: admin.client.post(path, {"logo": row.sha256})


@act("POST admin/new-catalogue/", kinds.HUMAN_VERIFIED, kinds.CATALOGUE_PROPOSED)
def an_admin_proposes_a_catalogue(world: World) -> Act:
    provider = str(world.provider.pk)
    return world.form(
        world.admin, "/admin/new-catalogue/", service_provider=provider, catalogue="{}"
    )


@act(
    "POST admin/new-service-provider/",
    kinds.HUMAN_VERIFIED,
    kinds.SERVICE_PROVIDER_CREATED,
    kinds.CATALOGUE_PROPOSED,
)
def an_admin_creates_a_service_provider_with_a_catalogue(world: World) -> Act:
    url = "https://acme.example"
    return world.form(
        world.admin, "/admin/new-service-provider/", name="Acme", audience=url, catalogue="{}"
    )


@act("POST admin/new-service-provider/", kinds.HUMAN_VERIFIED, kinds.SERVICE_PROVIDER_CREATED)
def an_admin_creates_a_service_provider(world: World) -> Act:
    url = "https://acme.example"
    return world.form(
        world.admin, "/admin/new-service-provider/", name="Acme", audience=url, allowed=""
    )
