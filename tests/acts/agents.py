"""What agents do through their own API."""

from datetime import timedelta
from typing import Any
from unittest.mock import patch

from django.db.models import DateTimeField, Value
from django.test import override_settings
from django.utils import timezone

from audit import kinds
from kms.token_signer import ProcessKeys
from registry.models import Agent
from registry.services.enrolment_codes import create_enrolment_code
from registry.tests.cast import PAY, READ_CALENDAR, TESTER, AgentClient, issue
from tests.acts.world import Act, World, act, task
from verifier.services.replay_cache_lease import Lease

REFUSED = (kinds.REQUEST_REFUSED,)


def code_of(world: World) -> str:
    return create_enrolment_code(human=world.alice.human, actor=TESTER, now=world.now)[1]


@act("POST v1/agents", kinds.AGENT_REGISTERED)
def an_agent_registers_unclaimed(_world: World) -> Act:
    return AgentClient().register


@act("POST v1/agents", kinds.AGENT_REGISTERED)
def an_agent_registers_with_a_code(world: World) -> Act:
    client, code = AgentClient(), code_of(world)
    return lambda: client.register(code)


@act("POST v1/agents", kinds.ENROLMENT_CODE_FAILED)
def an_agent_registers_with_a_wrong_code(world: World) -> Act:
    client, code = AgentClient(), code_of(world)
    return lambda: client.register(code[:-1] + ("A" if code[-1] != "A" else "B"))


@act("POST v1/agents", edge=REFUSED)
def an_agent_registers_with_a_code_nobody_made(_world: World) -> Act:
    return lambda: AgentClient().register("AAAAAAAA-BBBB")


@act("POST v1/agents")
def an_agent_registers_again(world: World) -> Act:
    client, manifest = AgentClient(), ""
    manifest = client.manifest()
    client.register(manifest=manifest)
    return lambda: client.register(manifest=manifest)


@act("POST v1/agents", kinds.AGENT_CLAIM_RENEWED)
def an_agent_registers_again_since_its_link_ended(world: World) -> Act:
    client = AgentClient()
    client.register()
    Agent.objects.update(claim_expires_at=world.past())
    return client.register


@act("POST v1/agents", kinds.AGENT_CLAIMED)
def an_unclaimed_agent_brings_a_code(world: World) -> Act:
    client, code = AgentClient(), code_of(world)
    client.register()
    return lambda: client.register(code)


@act("POST v1/agents", kinds.AGENT_KEY_BARRED, edge=REFUSED)
def a_stranger_shows_the_private_half_of_its_key(_world: World) -> Act:
    return _disclose(AgentClient())


@act("POST v1/agents", kinds.AGENT_KEY_BARRED, kinds.AGENT_REVOKED, edge=REFUSED)
def an_agent_shows_the_private_half_of_its_key(world: World) -> Act:
    return _disclose(world.agent)


def _disclose(client: AgentClient) -> Act:
    leak = client.disclosing("agent-manifest+jwt")
    return lambda: client.register(manifest=leak)


@act("POST v1/agents/me/manifest", kinds.AGENT_MANIFEST_RENEWED)
def an_agent_renews_its_manifest(world: World) -> Act:
    client, _ = world.agent, world.grant
    return lambda: client.replace(days=90)


@act("POST v1/agents/me/manifest", kinds.AGENT_MANIFEST_CHANGED, kinds.GRANT_VERSION_RAISED)
def an_agent_describes_itself_anew(world: World) -> Act:
    client, _ = world.agent, world.grant
    return lambda: client.replace(description="Another")


@act(
    "POST v1/agents/me/manifest",
    kinds.AGENT_MANIFEST_CHANGED,
    kinds.GRANT_SUSPENDED,
    kinds.GRANT_WITHDRAWN,
)
def an_agent_gives_up_what_it_had_and_asked_for(world: World) -> Act:
    client, _ = world.agent, (world.grant, world.request)
    return lambda: client.replace(capabilities=[PAY])


@act(
    "POST v1/agents/me/key",
    kinds.AGENT_KEY_ROTATED,
    kinds.GRANT_VERSION_RAISED,
    kinds.GRANT_SUSPENDED,
)
def an_agent_takes_another_key(world: World) -> Act:
    client, _ = world.agent, (world.grant, world.paying)
    return client.rotate


@act("DELETE v1/agents/me", kinds.AGENT_REVOKED, kinds.GRANT_WITHDRAWN)
def an_agent_ends_itself(world: World) -> Act:
    client, _ = world.agent, world.request
    return lambda: client.call("DELETE", "/v1/agents/me")


@act("POST v1/grants", kinds.GRANT_REQUESTED)
def an_agent_asks(world: World) -> Act:
    client, provider = world.agent, world.provider
    return lambda: client.ask(provider, reason="To find a slot")


@act("POST v1/grants")
def an_agent_asks_the_same_again(world: World) -> Act:
    client, provider = world.agent, world.provider
    client.ask(provider)
    return lambda: client.ask(provider)


@act("POST v1/grants")
def an_agent_asks_again_under_one_key(world: World) -> Act:
    client, provider = world.agent, world.provider
    client.ask(provider, key="k")
    return lambda: client.ask(provider, key="k")


@act("POST v1/grants", edge=REFUSED)
def an_agent_asks_for_more_than_its_manifest(world: World) -> Act:
    client, provider = world.agent, world.provider
    return lambda: client.ask(provider, capabilities=[{"type": "read", "resource": "mail"}])


@act("POST v1/grants/<str:grant_id>/withdraw", kinds.GRANT_WITHDRAWN)
def an_agent_withdraws(world: World) -> Act:
    client, path = world.agent, f"/v1/grants/{world.request.pk}/withdraw"
    return lambda: client.call("POST", path)


@act("POST v1/grants/<str:grant_id>/withdraw")
def an_agent_withdraws_again(world: World) -> Act:
    client, path = world.agent, f"/v1/grants/{world.request.pk}/withdraw"
    client.call("POST", path)
    return lambda: client.call("POST", path)


@act("POST v1/grants/<str:grant_id>/revoke", kinds.GRANT_REVOKED)
def an_agent_revokes_its_grant(world: World) -> Act:
    client, path = world.agent, f"/v1/grants/{world.grant.pk}/revoke"
    return lambda: client.call("POST", path)


@act("POST v1/tokens", kinds.TOKEN_ISSUED, kinds.KEY_CERTIFIED)
def an_agent_is_given_a_token_by_a_process_that_has_a_key_certified(world: World) -> Act:
    agent, grant = world.agent, world.grant

    def run() -> Any:
        delegate = ProcessKeys(lambda work: work())
        with (
            override_settings(TOKEN_SIGNING="delegated"),
            patch("kms.token_signer.DELEGATE", delegate),
        ):
            return issue(agent, grant)

    return run


@act("POST v1/tokens", kinds.TOKEN_ISSUED)
def an_agent_gets_a_token(world: World) -> Act:
    client, grant = world.agent, world.grant
    return lambda: issue(client, grant)


@act("POST v1/tokens")
def an_agent_gets_its_token_again_under_one_key(world: World) -> Act:
    client, grant = world.agent, world.grant
    issue(client, grant, key="k")
    return lambda: issue(client, grant, key="k")


@act("POST v1/tokens", edge=REFUSED)
def an_agent_gets_no_token_for_what_was_not_approved(world: World) -> Act:
    client, grant = world.agent, world.request
    return lambda: issue(client, grant)


@act("POST v1/revoke", kinds.TOKEN_REVOKED)
def an_agent_revokes_its_token(world: World) -> Act:
    client, body = world.agent, f"token={world.token}".encode()
    headers = {"DPoP": client.proof("POST", "/v1/revoke", body)}
    form = "application/x-www-form-urlencoded"
    return lambda: client.client.generic(
        "POST", "/v1/revoke", body, content_type=form, headers=headers
    )


@act("task registry.expire_everything", kinds.AGENT_EXPIRED)
def an_agents_manifest_ends(world: World) -> Act:
    world.agent.agent()
    Agent.objects.update(expires_at=world.past())
    return task("registry.expire_everything")


@act("task registry.expire_everything", kinds.AGENT_DELETED)
def nobody_claims_an_agent_for_a_week(world: World) -> Act:
    client, _ = world.stray()
    client.ask(world.provider, capabilities=[READ_CALENDAR])
    Agent.objects.update(claim_expires_at=world.now - timedelta(days=8))
    return task("registry.expire_everything")


@act("POST v1/tokens", kinds.CLOCK_OFF)
def an_agent_asks_a_host_whose_clock_is_off_for_a_token(world: World) -> Act:
    client, grant = world.agent, world.grant

    def later() -> Value:
        # Of each look: a scene that took seconds would bring a fixed time close to this host's.
        return Value(timezone.now() + timedelta(seconds=10), output_field=DateTimeField())

    def ask() -> Any:
        with (
            patch("verifier.services.replay_epochs.database_clock", later),
            patch("verifier.services.replay_cache_lease.LEASE", Lease()),
        ):
            return issue(client, grant)

    return ask
