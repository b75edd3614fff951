"""Each service that changes what verification reads publishes it once, in the same transaction."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from django.db import OperationalError, transaction
from django.db.models import Model
from django.utils import timezone

import kms.services
import registry.services
from agentauth.protocol.behavioural_envelope import EMPTY
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.encoding import sha256
from audit import kinds
from kms.models import Key
from kms.state_change_publisher import Subject
from registry.models import (
    Absence,
    Agent,
    ApprovalRule,
    ApproverGroup,
    CatalogueVersion,
    Grant,
    GroupMember,
    Human,
    ServiceLogo,
    ServiceProvider,
    ServiceProviderSecret,
    Token,
)
from registry.roles import Role
from registry.services import (
    agent_claims,
    agent_key_rotation,
    agent_manifests,
    agent_registration,
    agents,
    approvers,
    barred_keys,
    catalogues,
    dependent_grant_suspension,
    enrolment_codes,
    expiry,
    grant_renewal,
    grant_requests,
    grants,
    humans,
    roles,
    service_logos,
    service_providers,
    settings_agreement,
    tokens,
)
from registry.tests.cast import claim_link, grant_request
from verifier.models import StateChange
from verifier.tests.change_arguments import World
from verifier.tests.scene import READ, SYSTEM, scene

pytestmark = pytest.mark.django_db
QUARTER = timedelta(days=91)


Told = Callable[[World, Any], list[tuple[Subject, object]]]


def the_token(world: World, _made: Any) -> list[tuple[Subject, object]]:
    return [(Subject.TOKEN, world.jti)]


def the_grant(world: World, _made: Any) -> list[tuple[Subject, object]]:
    return [(Subject.GRANT, world.place.grant.pk)]


def the_made_grant(_world: World, made: Any) -> list[tuple[Subject, object]]:
    return [(Subject.GRANT, made.pk)]


def the_agent(world: World, _made: Any) -> list[tuple[Subject, object]]:
    return [(Subject.AGENT, world.place.agent.pk)]


def the_agent_and_its_grant(world: World, made: Any) -> list[tuple[Subject, object]]:
    return the_agent(world, made) + the_grant(world, made)


def the_provider_and_its_grant(world: World, made: Any) -> list[tuple[Subject, object]]:
    return the_provider(world, made) + the_grant(world, made)


def the_human(world: World, _made: Any) -> list[tuple[Subject, object]]:
    return [(Subject.HUMAN, world.place.human.pk)]


def the_human_and_the_grant(world: World, made: Any) -> list[tuple[Subject, object]]:
    return the_human(world, made) + the_grant(world, made)


def the_human_and_all_of_theirs(world: World, made: Any) -> list[tuple[Subject, object]]:
    return the_human(world, made) + the_agent_and_its_grant(world, made)


def the_provider(world: World, _made: Any) -> list[tuple[Subject, object]]:
    return [(Subject.SERVICE_PROVIDER, world.place.provider.pk)]


def the_newest_keys(_world: World, _made: Any) -> list[tuple[Subject, object]]:
    of_then = Key.objects.filter(published_at=Key.objects.latest("id").published_at)
    return [(Subject.KEY, key.kid) for key in of_then]


def the_made_key(_world: World, made: Any) -> list[tuple[Subject, object]]:
    return [(Subject.KEY, made)]


# Arguments of a service by name, from the world and from the result of `before`.
ARGUMENTS: dict[str, Callable[[World, Any], object]] = {
    "actor": lambda _world, _made: SYSTEM,
    "now": lambda world, _made: world.now,
    "agent": lambda world, _made: world.place.agent,
    "human": lambda world, _made: world.place.human,
    "service_provider": lambda world, _made: world.place.provider,
    "caller": lambda world, _made: world.place.provider,
    "jti": lambda world, _made: world.jti,
    "grant_id": lambda world, _made: str(world.place.grant.pk),
    "asked": lambda world, _made: grant_request(world.place.provider),
    "key": lambda world, _made: world.place.signer.public,
    "jkt": lambda world, _made: world.place.signer.public.thumbprint,
    "reason": lambda _world, _made: "restored",
    "secret": lambda world, _made: ServiceProviderSecret.objects.get(
        service_provider=world.place.provider
    ),
    "capabilities": lambda _world, _made: parse_capabilities([READ]),
    "envelope": lambda _world, _made: EMPTY,
    "valid_until": lambda world, _made: (world.now + timedelta(days=1)).replace(microsecond=0),
    "audience": lambda _world, _made: "https://new.example",
}


@dataclass
class Row:
    """A service, the change that it must publish (or None), and how to call it.

    `before` makes the service's argument `made`; `more` are further arguments.
    """

    service: Callable[..., object]
    told: Told | None
    before: Callable[[World], Any] | None = None
    made: str = ""
    more: dict[str, Callable[[World, Any], object]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}-{self.before.__name__}" if self.before else self.name

    @property
    def name(self) -> str:
        return f"{self.service.__module__}.{self.service.__name__}"

    def call(self, world: World, made: Any) -> None:
        known = (
            ARGUMENTS | self.more | ({self.made: lambda _world, _made: made} if self.made else {})
        )
        parameters = inspect.signature(self.service).parameters.values()
        wanted = [
            each.name for each in parameters if each.default is each.empty or each.name in self.more
        ]
        positional = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        values = {name: known[name](world, made) for name in wanted}
        self.service(*[values.pop(name) for name in positional], **values)


def constant(value: object) -> Callable[[World, Any], object]:
    return lambda _world, _made: value


def next_key(world: World) -> datetime:
    return kms.services.rotate_key(purpose="token", actor=SYSTEM, now=world.now).active_from


def suspended_by_a_restore(world: World) -> Grant:
    return world.suspended(Grant.SuspensionCause.RESTORED)


def suspended_by_a_person(world: World) -> Grant:
    return world.suspended(Grant.SuspensionCause.PERSON)


def suspended_by_rotation(world: World) -> Grant:
    return world.suspended(Grant.SuspensionCause.KEY_ROTATED)


def suspended_agent(world: World) -> None:
    agents.suspend_agent(agent=world.place.agent, actor=SYSTEM, now=world.now)


def suspended_human(world: World) -> None:
    humans.suspend_human(human=world.place.human, actor=SYSTEM, now=world.now)


def suspended_provider(world: World) -> None:
    provider = world.place.provider
    service_providers.suspend_service_provider(
        service_provider=provider, actor=SYSTEM, now=world.now
    )


def second_secret(world: World) -> None:
    service_providers.rotate_secret(
        service_provider=world.place.provider, actor=SYSTEM, now=world.now
    )


def proposed_catalogue(world: World) -> CatalogueVersion:
    row, _is_new = catalogues.propose_catalogue(
        service_provider=world.place.provider, document={}, actor=SYSTEM, now=world.now
    )
    return row


def proposed_logo(world: World) -> ServiceLogo:
    return service_logos.propose_logo(
        service_provider=world.place.provider, image=b"png", actor=SYSTEM, now=world.now
    )


def agent_past_its_end(world: World) -> None:
    Agent.objects.filter(pk=world.place.agent.pk).update(expires_at=world.now)


def a_group(world: World) -> ApproverGroup:
    return approvers.create_group(
        name="Finance", wait_minutes=5, next_group=None, actor=SYSTEM, now=world.now
    )


def a_member(world: World) -> GroupMember:
    group, human = a_group(world), world.place.human
    return approvers.add_member(group=group, human=human, actor=SYSTEM, now=world.now)


def a_rule(world: World) -> ApprovalRule:
    group = a_group(world)
    return approvers.create_rule(name="All", group=group, actor=SYSTEM, now=world.now)


def two_rules(world: World) -> list[ApprovalRule]:
    first = a_rule(world)
    more: dict[str, Any] = {"group": first.group, "actor": SYSTEM, "now": world.now}
    return [first, approvers.create_rule(name="More", **more)]


def an_absence(world: World) -> Absence:
    start, end = world.now, world.now + QUARTER
    return approvers.set_absence(
        human=world.place.human, starts_at=start, ends_at=end, actor=SYSTEM, now=world.now
    )


GROUP = {
    "name": constant("Directors"),
    "wait_minutes": constant(10),
    "next_group": constant(None),
}
AWAY: dict[str, Callable[[World, Any], object]] = {
    "starts_at": lambda world, _: world.now,
    "ends_at": lambda world, _: world.now + QUARTER,
}
SERVICES = [
    Row(kms.services.ensure_key, the_newest_keys, more={"purpose": constant("audit")}),
    Row(kms.services.rotate_key, the_newest_keys, more={"purpose": constant("token")}),
    Row(kms.services.promote_due_keys, the_newest_keys, next_key, "now"),
    Row(
        kms.services.rotate_due_keys,
        the_newest_keys,
        more={"now": lambda world, _: world.now + QUARTER},
    ),
    Row(
        kms.services.disable_key,
        the_made_key,
        lambda _: Key.objects.get(purpose="token").kid,
        "kid",
        {"even_last": constant(True)},
    ),
    Row(tokens.issue_token, None),
    Row(tokens.revoke_token, the_token),
    Row(tokens.revoke_presented_token, the_token, World.token, "untrusted_token"),
    Row(grant_requests.request_grant, None),
    Row(grant_renewal.request_renewal, None, World.renewable, "grant"),
    Row(approvers.create_group, None, more=GROUP),
    Row(approvers.change_group, None, a_group, "group", GROUP),
    Row(approvers.remove_group, None, a_group, "group"),
    Row(approvers.add_member, None, a_group, "group"),
    Row(approvers.remove_member, None, a_member, "member"),
    Row(approvers.create_rule, None, a_group, "group", {"name": constant("All")}),
    Row(
        approvers.move_rule,
        None,
        two_rules,
        more={"rule": lambda _, made: made[1], "before": lambda _, made: made[0]},
    ),
    Row(approvers.end_rule, None, a_rule, "rule"),
    Row(approvers.set_absence, None, more=AWAY),
    Row(approvers.end_absence, None, an_absence, "absence"),
    Row(approvers.erase_approver, None, more={"human_id": lambda world, _: world.place.human.pk}),
    Row(grants.approve_grant, the_made_grant, World.request, "grant"),
    Row(grants.approve_grant, the_grant, suspended_by_rotation, "grant"),
    Row(grants.deny_grant, None, World.request, "grant", {"reason": constant("")}),
    Row(grant_requests.withdraw_grant, None, World.request, "grant"),
    Row(
        grants.end_grant,
        None,
        World.request,
        "grant",
        {"status": constant("withdrawn"), "kind": constant(kinds.GRANT_WITHDRAWN)},
    ),
    Row(grants.end_pending_grants, None, World.request),
    Row(grants.revoke_grant, the_grant, World.grant, "grant"),
    Row(grants.suspend_grant, the_grant, World.grant, "grant"),
    Row(
        grants.raise_version,
        the_grant,
        World.grant,
        "grant",
        {"cause": constant("manifest_changed")},
    ),
    Row(dependent_grant_suspension.follow_new_key, the_grant),
    Row(dependent_grant_suspension.follow_new_manifest, the_grant),
    Row(dependent_grant_suspension.follow_new_audience, the_grant),
    Row(dependent_grant_suspension.follow_new_allow_list, None),
    Row(grants.resume_grant, the_grant, suspended_by_a_person, "grant"),
    Row(grants.release_grant, the_grant, suspended_by_a_restore, "grant", {"data": constant({})}),
    Row(grants.expire_grant, the_grant, World.over, "grant"),
    Row(grants.expire_grant, None, World.request_that_is_over, "grant"),
    Row(
        agent_claims.check_claim_code,
        None,
        World.unclaimed,
        "agent",
        {"code": lambda _, made: claim_link(made)[1]},
    ),
    # No token exists for an agent that was unclaimed.
    Row(agent_claims.claim_agent, None, World.unclaimed, "agent"),
    Row(agents.suspend_agent, the_agent),
    Row(agents.suspend_all_agents, the_agent),
    Row(agents.resume_agent, the_agent, suspended_agent),
    Row(agents.revoke_agent, the_agent),
    Row(barred_keys.bar_disclosed_key, the_agent),
    Row(barred_keys.bar_key, the_agent),
    Row(agent_key_rotation.rotate_agent_key, the_agent_and_its_grant, World.key_change, "change"),
    Row(
        agent_manifests.replace_manifest, the_agent_and_its_grant, World.later_manifest, "manifest"
    ),
    Row(expiry.expire_everything, the_agent, agent_past_its_end),
    Row(
        agent_registration.register_agent,
        None,
        World.manifest,
        "manifest",
        {"enrolment_code": constant(None)},
    ),
    Row(enrolment_codes.create_enrolment_code, None),
    Row(settings_agreement.record_settings, None),
    Row(enrolment_codes.count_failure, None, World.wrong_code, "code"),
    Row(
        humans.create_human,
        None,
        more={"email": constant("new@example.org"), "name": constant("New")},
    ),
    Row(humans.change_time_zone, None, more={"zone": constant("Europe/Berlin")}),
    Row(humans.change_language, None, more={"language": constant("de")}),
    Row(humans.suspend_human, the_human),
    Row(humans.resume_human, the_human, suspended_human),
    # Their presence ends with them.
    Row(humans.end_sessions, the_human),
    Row(humans.recover_human, the_human_and_the_grant),
    Row(humans.delete_human, the_human_and_all_of_theirs),
    Row(roles.change_role, the_human, more={"role": constant(Role.AUDITOR)}),
    Row(service_providers.create_service_provider, None, more={"name": constant("New")}),
    Row(service_providers.change_audience, the_provider_and_its_grant),
    # Grants beyond the new list are suspended. The list itself is read only at approval.
    Row(service_providers.change_allowed, the_grant, more={"allowed": constant([])}),
    Row(service_providers.rotate_secret, the_provider),
    Row(service_providers.end_previous_secrets, the_provider, second_secret),
    Row(service_providers.end_secret, the_provider),
    Row(service_providers.suspend_service_provider, the_provider),
    Row(service_providers.resume_service_provider, the_provider, suspended_provider),
    Row(service_providers.revoke_service_provider, the_provider),
    # Only pages read catalogues, from the database each time.
    Row(catalogues.propose_catalogue, None, more={"document": constant({})}),
    Row(
        catalogues.create_with_catalogue,
        None,
        more={
            "document": constant({}),
            "name": constant("New"),
            "audience": constant("https://new.example"),
        },
    ),
    Row(catalogues.approve_catalogue, None, proposed_catalogue, "row"),
    Row(catalogues.refuse_catalogue, None, proposed_catalogue, "row"),
    Row(service_logos.propose_logo, None, more={"image": constant(b"png")}),
    Row(service_logos.approve_logo, None, proposed_logo, "row"),
    Row(
        service_logos.remove_logo,
        None,
        proposed_logo,
        more={"digest": constant(sha256(b"png").hex())},
    ),
]


@pytest.fixture
def world(db: None) -> World:
    return World(scene(), timezone.now())


def feed() -> list[tuple[str, str]]:
    return list(StateChange.objects.order_by("id").values_list("subject", "subject_id"))


@pytest.mark.parametrize("row", SERVICES, ids=str)
def test_each_service_publishes_exactly_its_changes_unless_rolled_back(
    row: Row, world: World
) -> None:
    made = row.before(world) if row.before else None
    before = feed()
    with transaction.atomic():
        row.call(world, made)
        said = feed()[len(before) :]
        expected = [] if row.told is None else row.told(world, made)
        transaction.set_rollback(True)
    assert sorted(said) == sorted(
        (str(subject), str(subject_id)) for subject, subject_id in expected
    )
    assert feed() == before


def modules() -> list[ModuleType]:
    below = pkgutil.iter_modules(registry.services.__path__, "registry.services.")
    return [kms.services, *(importlib.import_module(entry.name) for entry in below)]


def test_no_service_that_changes_something_is_missing_here() -> None:
    """A service that changes a row takes an actor, who is named in its event."""
    found = {
        f"{module.__name__}.{name}"
        for module in modules()
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
        and ("actor" in inspect.signature(function).parameters or name.startswith("expire_"))
    }
    assert found == {row.name for row in SERVICES}


@pytest.mark.parametrize("row", [row for row in SERVICES if row.told], ids=str)
def test_a_change_that_cannot_be_published_is_not_made(
    row: Row, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = row.before(world) if row.before else None

    def failing(**_: object) -> None:
        raise OperationalError("disk full")

    def state() -> list[list[object]]:
        models: list[type[Model]] = [
            Grant,
            Agent,
            Key,
            Token,
            Human,
            ServiceProvider,
            ServiceProviderSecret,
        ]
        return [list(model._default_manager.order_by("pk").values()) for model in models]

    before = state()
    monkeypatch.setattr("verifier.services.state_change_feed.publish", failing)
    with pytest.raises(OperationalError):
        row.call(world, made)
    assert state() == before
