"""A right-giving row that our services did not write is void: each kind, with the serving role."""

import hashlib
import json
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import GrantChangedError, InvalidStateError
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.money import Money
from approvals.models import Challenge, Passkey, Recovery, SetupCode
from approvals.services.passkey_management import remove_passkey
from approvals.services.recovery import cancel_recovery
from approvals.services.setup_and_sign_in import create_setup_link, use_code
from approvals.tests import forged_approvers
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import ORIGIN, Person, browser
from approvals.tests.conftest import admin, alice, bob, keys
from approvals.tests.recovering import begun, link_of
from audit.tests.tampering import as_table_owner
from kms.models import Key
from kms.row_seals import Sealed
from kms.seal_backfill import sealed_models, unsealed_rows
from kms.services import disable_key, evidence_keys, public_jwks, rotate_key, signer
from registry.models import (
    Absence,
    Agent,
    ApprovalRule,
    ApproverGroup,
    BarredKey,
    CatalogueVersion,
    Grant,
    GroupMember,
    Human,
    ServiceLogo,
    ServiceProvider,
    ServiceProviderSecret,
)
from registry.services.approvers import (
    add_member,
    change_group,
    create_group,
    create_rule,
    end_absence,
    end_rule,
    remove_member,
    set_absence,
)
from registry.services.service_logos import remove_logo
from registry.services.service_providers import (
    change_allowed,
    create_service_provider,
    end_secret,
    revoke_service_provider,
    rotate_secret,
)
from registry.tests import forged_catalogues, logos
from registry.tests.cast import (
    PAY,
    TESTER,
    AgentClient,
    approve,
    approved,
    assert_refused,
    basic,
    enrolled,
    issue,
    pending,
)
from registry.tests.describing import published
from registry.tests.written_rows import inserted, write

__all__ = ["admin", "alice", "bob", "keys"]

pytestmark = pytest.mark.django_db

CODE = b"sixteen bytes ok"
DIGEST = hashlib.sha256(CODE).digest()


class World:
    """One row of each sealed kind, each made by its own service."""

    def __init__(self, alice: Person, bob: Person, admin: Person, now: datetime) -> None:
        self.alice, self.bob, self.admin, self.now = alice, bob, admin, now
        self.provider, self.secret = create_service_provider(
            name="Acme",
            audience="http://127.0.0.1:8001/v1",
            allowed=("read:calendar",),
            actor=TESTER,
            now=now,
        )
        create_setup_link(email="zoe@example.org", actor=TESTER, now=now)
        begun(bob.human, now)
        self.agent = enrolled(alice.human, now=now)
        last = create_group(
            name="Directors", wait_minutes=9, next_group=None, actor=TESTER, now=now
        )
        self.group = create_group(
            name="Finance", wait_minutes=5, next_group=last, actor=TESTER, now=now
        )
        self.rule = create_rule(
            name="Large payments",
            group=self.group,
            service_provider=self.provider,
            action_type="transact",
            above=Money(100_000, "EUR"),
            actor=TESTER,
            now=now,
        )
        self.rows: dict[type[Sealed], Any] = {
            Absence: set_absence(
                human=alice.human,
                starts_at=now,
                ends_at=now + timedelta(days=1),
                deputy=bob.human,
                actor=TESTER,
                now=now,
            ),
            Agent: self.agent.agent(),
            ApprovalRule: self.rule,
            ApproverGroup: self.group,
            GroupMember: add_member(group=self.group, human=bob.human, actor=TESTER, now=now),
            CatalogueVersion: published(self.provider, now),
            ServiceLogo: logos.shown(self.provider, now),
            Human: admin.human,
            Key: Key.objects.get(purpose="receipt"),
            Passkey: Passkey.objects.get(human=alice.human),
            Recovery: Recovery.objects.get(),
            ServiceProvider: self.provider,
            ServiceProviderSecret: ServiceProviderSecret.objects.get(),
            SetupCode: SetupCode.objects.get(used_at=None),
        }


@pytest.fixture
def world(alice: Person, bob: Person, admin: Person, now: datetime) -> World:
    return World(alice, bob, admin, now)


def another(value: Any) -> Any:
    """A different value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, datetime):
        return value + timedelta(days=1)
    if isinstance(value, uuid.UUID):
        return uuid.uuid4()
    if isinstance(value, bytes | memoryview):
        return bytes(value)[:-1] + bytes([bytes(value)[-1] ^ 1])
    if isinstance(value, list):
        return [*value, "read:mail"]
    if isinstance(value, dict):
        return value | {"x": "A" * 43}
    if isinstance(value, int):
        return value + 1
    text = value or ""
    return ("y" if text[:1] == "x" else "x") + text[1:]


def test_DJ_17_every_kind_of_row_with_a_seal_is_tried_here(world: World) -> None:
    assert set(world.rows) == set(sealed_models()) == set(FORGED) == set(SET_BACK)
    assert list(unsealed_rows()) == []


def _fields() -> list[tuple[type[Sealed], str]]:
    return [(model, name) for model in sealed_models() for name in model.SEALED if name != "id"]


@pytest.mark.parametrize(
    ("model", "name"), _fields(), ids=lambda each: getattr(each, "__name__", each)
)
def test_DJ_17_no_field_that_gives_a_right_changes_alone(
    world: World, model: type[Sealed], name: str
) -> None:
    row = model.rows().get(pk=world.rows[model].pk)
    assert row.is_sealed()
    if name == "case":
        # A constraint of the table.
        write(row, ready_at=None)
    fixed = {
        "case": "stolen",
        "purpose": "audit",
        "kind": "first_admin",
        "link_digest": DIGEST,
        **dict.fromkeys(("begun_by_id", "confirmed_by_id", "human_id"), world.admin.human.pk),
        "link_expires_at": world.now,
        "service_provider_id": _elsewhere(world).pk,
        "group_id": ApproverGroup.objects.get(name="Directors").pk,
        "next_id": None,
        "deputy_id": None,
        "starts_at": world.now + timedelta(hours=1),
        "ended_at": world.now,
    }
    value = fixed.get(name, another(getattr(row, name)))
    write(row, **{name: value})
    changed = model.rows().get(pk=row.pk)
    assert getattr(changed, name) != getattr(row, name)
    assert not changed.is_sealed()
    # A former administrator may not look.
    gives = model.giving().filter(pk=row.pk).exists()
    assert list(unsealed_rows()) == [(model.table(), str(row.pk))] * gives
    # Changed back, but with another row's seal.
    write(row, seal=world.rows[Agent if model is not Agent else Passkey].seal)
    assert not model.rows().get(pk=row.pk).is_sealed()


def _elsewhere(world: World) -> ServiceProvider:
    provider, _ = create_service_provider(
        name="Elsewhere", audience="http://127.0.0.1:8009/v1", actor=TESTER, now=world.now
    )
    return provider


def comes_in(path: str) -> None:
    person = Person(client=browser())
    for asked in (path, f"{path}options"):
        answer = (
            person.get(asked)
            if asked == path
            else person.post(asked, {"name": "Eve", "email": "e@e.example"})
        )
        assert answer.status_code in {404, 410}, answer.content


def a_passkey(world: World) -> None:
    """A passkey of her own device stored as Alice's; then written over Alice's own row."""
    device, row = Authenticator(origin=ORIGIN), world.rows[Passkey]
    inserted(row, credential_id=device.credential_id, public_key=device.public_key)
    eve = Person(client=browser(), device=device)
    device.user_handle = bytes(row.user_handle)
    assert_refused(eve.sign_in(), 400, "invalid_assertion")
    Passkey.objects.exclude(pk=row.pk).filter(human=world.alice.human).delete()
    write(row, credential_id=device.credential_id, public_key=device.public_key)
    assert_refused(eve.sign_in(), 400, "invalid_assertion")
    assert_refused(eve.sign_in(world.alice.client), 400, "invalid_assertion")
    # Nor through a challenge for a further passkey in Alice's session, which no passkey signed for.
    options = world.bob.ask_passkey().json()["publicKey"]
    Challenge.objects.filter(purpose="passkey").update(data={})
    body = {"credential": Authenticator(origin=ORIGIN).registration(options)}
    assert_refused(world.bob.post("/settings/passkeys/finish", body), 400, "invalid_assertion")


def an_invitation(world: World) -> None:
    """With a code of the attacker's; then an invitation that makes its guest an administrator."""
    row = world.rows[SetupCode]
    inserted(row, digest=DIGEST, is_staff=True)
    comes_in(f"/setup/{b64u_encode(CODE)}/")
    SetupCode.objects.exclude(pk=row.pk).delete()
    link = create_setup_link(email="yan@example.org", actor=TESTER, now=world.now)
    SetupCode.objects.filter(email="yan@example.org").update(is_staff=True)
    comes_in(link.url.removeprefix(ORIGIN))


def a_recovery(world: World) -> None:
    """Marked ready, with the attacker's link: it would hand over the account."""
    later = world.now + timedelta(hours=1)
    ready = {"ready_at": world.now, "link_digest": DIGEST, "link_expires_at": later}
    write(world.rows[Recovery], **ready)
    comes_in(f"/recover/{b64u_encode(CODE)}/")
    # Nor does an administrator who makes a link for a ready recovery seal the row.
    with pytest.raises(InvalidStateError):
        link_of(Recovery.objects.get(), world.now)


def an_administrator(world: World) -> None:
    assert world.admin.get("/admin/").status_code == 200
    write(world.bob.human, is_staff=True, seal=world.admin.human.seal)
    assert world.bob.get("/admin/").status_code != 200
    assert world.bob.get(f"/recoveries/{world.alice.human.pk}/").status_code == 404
    assert not world.bob.human.has_perm("registry.view_agent")


def a_service_provider(world: World) -> None:
    """One with more rights than it has, one with another name, and one that reads the whole log."""
    grant = pending(world.agent, world.provider, now=world.now)
    write(world.provider, allowed=["read:calendar", "transact:payments"])
    assert_refused(world.agent.ask(world.provider, capabilities=[PAY]), 404, "not_found")
    assert_refused(world.alice.approve(grant), 409, "grant_changed")
    assert Grant.objects.get(pk=grant.pk).status == Grant.Status.PENDING
    write(world.provider, is_auditor=True)
    client = world.agent.client
    assert client.get(
        "/v1/audit/events", headers=basic(world.provider, world.secret)
    ).status_code in {
        401,
        403,
    }


def a_secret(world: World) -> None:
    row = world.rows[ServiceProviderSecret]
    inserted(row, digest=hashlib.sha256(b"my own").digest())
    client = world.agent.client
    for secret, status in ((world.secret, 200), ("my own", 401)):
        form, who = "application/x-www-form-urlencoded", basic(world.provider, secret)
        answer = client.post("/v1/introspect", "token=x", content_type=form, headers=who)
        assert answer.status_code == status, answer.content


def an_agents_key(world: World) -> None:
    """A key set without a rotation: refused for grants that stay signed, and for new ones."""
    grant = approved(world.agent, world.provider, now=world.now)
    assert issue(world.agent, grant).status_code == 201
    eve = AgentClient()
    write(world.rows[Agent], jkt=eve.jkt, public_jwk=eve.signer.public.jwk)
    assert_refused(issue(eve, grant), 401, "invalid_client")
    with pytest.raises(GrantChangedError):
        approve(pending(eve, world.provider, now=world.now), world.alice.human, now=world.now)
    # Nor does a rotation to a next key seal it.
    assert_refused(eve.rotate(), 401, "invalid_client")


def a_key(world: World) -> None:
    """Receipt and token keys of the attacker's sign nothing and count nowhere."""
    own = LocalSigner(PrivateKey.generate("EdDSA"))
    for purpose in ("receipt", "token"):
        row = Key.objects.get(purpose=purpose)
        values = {"kid": own.kid[:-1] + purpose[0], "state": "next", "public_jwk": own.public.jwk}
        inserted(row, **values, active_from=world.now + timedelta(microseconds=1))
        later = world.now + timedelta(seconds=1)
        assert signer(purpose=purpose, now=later).kid == row.kid
        assert evidence_keys(purpose=purpose).keys() == {row.kid}
        assert [each["kid"] for each in public_jwks(purpose=purpose, now=world.now)["keys"]] == [
            row.kid
        ]


FORGED: dict[type[Sealed], Callable[[World], None]] = {
    Absence: forged_approvers.an_approver,
    Agent: an_agents_key,
    ApprovalRule: forged_approvers.a_rule,
    ApproverGroup: forged_approvers.a_group,
    GroupMember: forged_approvers.an_approver,
    CatalogueVersion: forged_catalogues.a_catalogue,
    ServiceLogo: forged_catalogues.a_logo,
    Human: an_administrator,
    Key: a_key,
    Passkey: a_passkey,
    Recovery: a_recovery,
    ServiceProvider: a_service_provider,
    ServiceProviderSecret: a_secret,
    SetupCode: an_invitation,
}


@pytest.mark.parametrize("model", FORGED, ids=lambda each: each.__name__)
def test_DJ_17_a_row_that_no_service_wrote_gives_nothing(world: World, model: type[Sealed]) -> None:
    FORGED[model](world)


def _end_agents_key(world: World) -> None:
    assert world.agent.rotate().status_code == 200


def _end_key(world: World) -> None:
    rotate_key(purpose="receipt", actor=TESTER, now=world.now)
    disable_key(kid=world.rows[Key].kid, actor=TESTER, now=world.now, even_last=True)


def _end_passkey(world: World) -> None:
    alice = world.alice.human
    further = Authenticator(origin=ORIGIN)
    options = world.alice.ask_passkey().json()["publicKey"]
    done = world.alice.post(
        "/settings/passkeys/finish", {"credential": further.registration(options)}
    )
    assert done.status_code == 200
    remove_passkey(human=alice, passkey_id=str(world.rows[Passkey].pk), actor=TESTER, now=world.now)


def _end_human(world: World) -> None:
    Human.objects.filter(pk=world.admin.human.pk).update(is_staff=False, seal=None)


def _end_provider(world: World) -> None:
    change_allowed(
        service_provider=world.provider, allowed=["write:files"], actor=TESTER, now=world.now
    )


SET_BACK: dict[type[Sealed], Callable[[World], Any]] = {
    Absence: lambda world: end_absence(absence=world.rows[Absence], actor=TESTER, now=world.now),
    Agent: _end_agents_key,
    ApprovalRule: lambda world: end_rule(rule=world.rule, actor=TESTER, now=world.now),
    ApproverGroup: lambda world: change_group(
        group=world.group,
        name="Finance",
        wait_minutes=6,
        next_group=None,
        actor=TESTER,
        now=world.now,
    ),
    GroupMember: lambda world: remove_member(
        member=world.rows[GroupMember], actor=TESTER, now=world.now
    ),
    CatalogueVersion: forged_catalogues.end_catalogue,
    ServiceLogo: lambda world: remove_logo(
        service_provider=world.provider,
        digest=world.rows[ServiceLogo].sha256,
        actor=TESTER,
        now=world.now,
    ),
    Human: _end_human,
    Key: _end_key,
    Passkey: _end_passkey,
    Recovery: lambda world: cancel_recovery(
        recovery=world.rows[Recovery], actor=TESTER, now=world.now
    ),
    ServiceProvider: _end_provider,
    ServiceProviderSecret: lambda world: end_secret(
        secret=world.rows[ServiceProviderSecret], actor=TESTER, now=world.now
    ),
    SetupCode: lambda world: use_code(world.rows[SetupCode], now=world.now),
}


@pytest.mark.parametrize("model", SET_BACK, ids=lambda each: each.__name__)
def test_DJ_17_a_row_that_ended_and_is_set_back_gives_nothing(
    world: World, model: type[Sealed]
) -> None:
    before: Any = model.rows().filter(pk=world.rows[model].pk).values().get()
    assert model.rows().get(pk=before["id"]).is_sealed()
    SET_BACK[model](world)
    # Bypasses the state triggers, which other tests cover.
    with as_table_owner():
        if not model.rows().filter(pk=before["id"]).update(**before):
            model.rows().create(**before)
        row = model.rows().get(pk=before["id"])
        assert row.fits()
        assert not row.is_sealed()
        assert (model.table(), str(row.pk)) in list(unsealed_rows())


def test_DJ_17_removed_passkey_inserted_again_cannot_sign_in(world: World) -> None:
    before = Passkey.objects.filter(pk=world.rows[Passkey].pk).values().get()
    _end_passkey(world)
    Passkey.objects.create(**before)
    assert_refused(
        Person(client=browser(), device=world.alice.device).sign_in(), 400, "invalid_assertion"
    )


def test_DJ_17_a_key_that_was_rotated_out_and_is_set_back_gets_no_token(world: World) -> None:
    grant, old = approved(world.agent, world.provider, now=world.now), AgentClient()
    old.private, old.signer = world.agent.private, world.agent.signer
    assert issue(old, grant).status_code == 201
    before: Any = Agent.objects.filter(jkt=old.jkt).values("jkt", "public_jwk", "seal").get()
    _end_agents_key(world)
    assert issue(world.agent, grant).status_code == 201
    Agent.objects.update(**before)
    BarredKey.objects.all().delete()
    assert_refused(issue(old, grant), 401, "invalid_client")


def test_DJ_17_verify_audit_names_each_row_that_no_service_wrote(
    world: World, settings: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.VAR_DIR = tmp_path
    write(world.bob.human, is_staff=True)
    write(world.provider, name="Another")
    with pytest.raises(SystemExit):
        call_command("verify_audit", "--json")
    told = json.loads(capsys.readouterr().out)
    assert set(told["contradicted_rows"]) == {
        f"registry_human {world.bob.human.pk}",
        f"registry_serviceprovider {world.provider.pk}",
    }
    with pytest.raises(SystemExit):
        call_command("verify_audit")
    assert f"ROW registry_human {world.bob.human.pk} WAS CHANGED" in capsys.readouterr().out


def test_DJ_17_what_ended_for_good_has_no_seal(world: World) -> None:
    revoke_service_provider(service_provider=world.provider, actor=TESTER, now=world.now)
    world.provider.refresh_from_db()
    assert world.provider.seal is None
    rotate_key(purpose="receipt", actor=TESTER, now=world.now)
    disable_key(kid=world.rows[Key].kid, actor=TESTER, now=world.now, even_last=True)
    assert Key.objects.get(pk=world.rows[Key].pk).seal is None


def test_DJ_17_a_service_seals_no_row_that_it_did_not_write(world: World) -> None:
    write(world.provider, name="Another")
    for act in (rotate_secret, lambda **who: change_allowed(allowed=["read:mail"], **who)):
        with pytest.raises(InvalidStateError, match="verify_audit"):
            act(service_provider=world.provider, actor=TESTER, now=world.now)
