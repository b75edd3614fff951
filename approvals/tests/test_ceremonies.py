"""What is shown is signed, in every ceremony: once the page changes, its button signs nothing
(SA-3).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from approvals.models import Challenge, Receipt
from approvals.services import (
    agent_claim_signing,
    catalogue_approval_signing,
    confirmation_signing,
    grant_decision_signing,
    grant_release_after_restore,
    log_break_signing,
    logo_approval_signing,
    resume_signing,
)
from approvals.services.decidable_requests import find_case
from approvals.services.page_snapshot_token import Page, drawn_token
from approvals.tests import service_moves
from approvals.tests.cast import PAY, READ_CALENDAR, Person, drawn_on, waiting_confirmation
from approvals.tests.database_rollback import restored
from audit.models import Event, LogBreak
from kms.services import ensure_key, rotate_key
from registry.models import Agent, CatalogueVersion, Grant, Human, ServiceProvider
from registry.services.agents import suspend_agent
from registry.services.service_providers import create_service_provider
from registry.tests import logos
from registry.tests.cast import (
    TESTER,
    AgentClient,
    approve,
    approved,
    assert_refused,
    claim_link,
    pending,
)
from registry.tests.describing import proposed
from registry.tests.written_rows import write_sealed
from verifier.models import Confirmation

pytestmark = pytest.mark.django_db
Purpose = Challenge.Purpose
# Random challenges: they sign in or confirm presence, and no text is signed with them.
WITHOUT_TEXT = {
    Purpose.SETUP,
    Purpose.SIGN_IN,
    Purpose.PASSKEY,
    Purpose.PRESENCE,
    Purpose.VERIFICATION,
}
NAMES = {"agent_name": Agent, "service_name": ServiceProvider}


@dataclass
class Ceremony:
    """One page of `person` at `path`: how to press its button with an earlier page's token."""

    person: Person
    path: str
    shown: Callable[[], Page]
    drawn: str
    ask: Callable[[str], Any]

    def press(self) -> Any:
        return self.ask(self.drawn)

    def decide(self, options: dict[str, Any]) -> Any:
        credential = self.person.device.assertion(options)
        return self.person.post(f"{self.path}decide", {"credential": credential})


@dataclass
class Cast:
    alice: Person
    admin: Person
    agent: AgentClient
    provider: ServiceProvider
    now: datetime


@pytest.fixture
def cast(
    alice: Person,
    admin: Person,
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    settings: Settings,
    tmp_path: Path,
) -> Cast:
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    ensure_key(purpose="audit", actor=TESTER, now=now)
    return Cast(alice, admin, agent, service_provider, now)


def approval(cast: Cast) -> Ceremony:
    grant = pending(cast.agent, cast.provider, now=cast.now, capabilities=[READ_CALENDAR])
    return Ceremony(
        cast.alice,
        f"/approvals/{grant.pk}/",
        lambda: grant_decision_signing.approval_page(
            find_case(grant.pk, cast.alice.human, cast.now)
        ),
        cast.alice.drawn(grant),
        lambda drawn: cast.alice.statement(grant, drawn=drawn),
    )


def second_step(cast: Cast) -> Ceremony:
    grant = pending(cast.agent, cast.provider, now=cast.now, capabilities=[PAY])
    return Ceremony(
        cast.alice,
        f"/approvals/{grant.pk}/",
        lambda: grant_decision_signing.approval_page(
            find_case(grant.pk, cast.alice.human, cast.now)
        ),
        cast.alice.drawn(grant),
        lambda drawn: cast.alice.ask(grant, "second-step", drawn=drawn),
    )


def claim(cast: Cast) -> Ceremony:
    stray = AgentClient()
    assert (
        stray.register(manifest=stray.manifest(name="Stray", description="As before")).status_code
        == 201
    )
    url, code = claim_link(stray.agent())
    path = url.removeprefix("http://localhost:8000")
    # The only agent, so what changes below is this one.
    Agent.objects.exclude(pk=stray.agent().pk).delete()
    return Ceremony(
        cast.alice,
        path,
        lambda: agent_claim_signing.claim_page(stray.agent(), cast.alice.human, now=timezone.now()),
        cast.alice.drawn_at(path),
        lambda drawn: cast.alice.post(f"{path}statement", {"code": code, "drawn": drawn}),
    )


def confirmation(cast: Cast) -> Ceremony:
    grant = approve(
        pending(cast.agent, cast.provider, now=cast.now, capabilities=[PAY]),
        cast.alice.human,
        now=cast.now,
    )
    row = waiting_confirmation(grant, cast.now)
    path = f"/confirmations/{row.pk}/"
    return Ceremony(
        cast.alice,
        path,
        lambda: confirmation_signing.confirmation_page(
            Confirmation.objects.get(pk=row.pk), cast.alice.human, now=timezone.now()
        ),
        cast.alice.drawn_at(path),
        lambda drawn: cast.alice.post(f"{path}statement", {"decision": "confirm", "drawn": drawn}),
    )


def log_break(cast: Cast) -> Ceremony:
    row = restored()
    cast.admin.sign_in()
    path = f"/restores/{row.name}/"
    return Ceremony(
        cast.admin,
        path,
        lambda: log_break_signing.break_page(LogBreak.objects.get(), cast.admin.human),
        cast.admin.drawn_at(path),
        lambda drawn: cast.admin.post(f"{path}statement", {"drawn": drawn}),
    )


def release(cast: Cast) -> Ceremony:
    grant = approved(cast.agent, cast.provider, now=cast.now, capabilities=[READ_CALENDAR])
    row = restored()
    cast.admin.sign_in()
    path = f"/restores/{row.name}/release/"
    form = {"grant": str(grant.pk), "drawn": cast.admin.drawn_at(path)}
    page = cast.admin.client.post(f"{path}review", form)
    assert page.status_code == 200, page.content
    return Ceremony(
        cast.admin,
        path,
        lambda: grant_release_after_restore.release_page(row, list(Grant.objects.all()), 0),
        drawn_on(page),
        lambda drawn: cast.admin.post(
            f"{path}statement", {"grants": str(grant.pk), "drawn": drawn}
        ),
    )


def resume(cast: Cast) -> Ceremony:
    row = cast.agent.agent()
    suspend_agent(agent=row, actor=TESTER, now=cast.now)
    path = f"/agents/{row.pk}/resume/"
    return Ceremony(
        cast.alice,
        path,
        lambda: resume_signing.resume_page(
            resume_signing.find_suspension(cast.agent.agent(), party="owner", now=cast.now)
        ),
        cast.alice.drawn_at(path),
        lambda drawn: cast.alice.post(f"{path}statement", {"drawn": drawn}),
    )


def catalogue(cast: Cast) -> Ceremony:
    row = proposed(cast.provider, cast.now)
    path = f"/catalogues/{row.pk}/"
    return Ceremony(
        cast.admin,
        path,
        lambda: (
            catalogue_approval_signing.review_version(
                CatalogueVersion.objects.select_related("service_provider").get(pk=row.pk)
            ).page
        ),
        cast.admin.drawn_at(path),
        lambda drawn: cast.admin.post(f"{path}statement", {"drawn": drawn}),
    )


def logo(cast: Cast) -> Ceremony:
    logos.logo(cast.provider, cast.now)
    path = f"/logos/{cast.provider.pk}/"
    return Ceremony(
        cast.admin,
        path,
        lambda: logo_approval_signing.waiting_page(
            ServiceProvider.objects.get(pk=cast.provider.pk)
        ),
        cast.admin.drawn_at(path),
        lambda drawn: cast.admin.post(f"{path}statement", {"drawn": drawn}),
    )


CEREMONIES = {
    Purpose.APPROVAL: approval,
    Purpose.SECOND_STEP: second_step,
    Purpose.CLAIM: claim,
    Purpose.CONFIRMATION: confirmation,
    Purpose.BREAK: log_break,
    Purpose.RELEASE: release,
    Purpose.RESUME: resume,
    Purpose.CATALOGUE: catalogue,
    Purpose.LOGO: logo,
}


def rename_agent() -> None:
    Agent.objects.update(name="Other Name")


def rename_service() -> None:
    ServiceProvider.objects.update(name="Other Service")


def same_name_elsewhere() -> None:
    create_service_provider(
        name=Agent.objects.get().name,
        audience="http://127.0.0.1:8099",
        actor=TESTER,
        now=timezone.now(),
    )


# What each page shows, how it changes, and the sentence that reports it.
MOVES: dict[str, tuple[Callable[[], Any], str]] = {
    "agent_name": (rename_agent, "is now called “Other Name”."),
    "agent_key": (
        lambda: write_sealed(Agent.objects.get(), jkt="A" * 43),
        "The agent’s key was",
    ),
    "manifest": (
        lambda: Agent.objects.update(manifest_sha256="0" * 64),
        "The agent changed its description.",
    ),
    "agent_status": (lambda: Agent.objects.update(status="suspended"), "is now suspended."),
    "claim_number": (lambda: None, ""),
    "service_name": (rename_service, "is now called “Other Service”."),
    "service_status": (
        lambda: ServiceProvider.objects.update(status="suspended"),
        "The service was active and is now suspended.",
    ),
    "audience": (
        lambda: ServiceProvider.objects.update(audience="http://127.0.0.1:9999"),
        "to http://127.0.0.1:9999.",
    ),
    "allowed": (
        lambda: ServiceProvider.objects.update(allowed=["read:calendar", "delete:files"]),
        "The service changed what it allows.",
    ),
    "likenesses": (same_name_elsewhere, "The warnings about the agent’s name"),
    "version": (lambda: Grant.objects.update(version=7), "The grant has a newer version."),
    "status": (lambda: Grant.objects.update(status="withdrawn"), "is now withdrawn."),
    "capabilities": (
        lambda: Grant.objects.update(
            requested_capabilities=[READ_CALENDAR | {"resource": "calendar/x"}]
        ),
        "The agent now asks for other permissions.",
    ),
    "envelope": (
        lambda: Grant.objects.update(requested_envelope={"max_uses": 3}),
        "The limits have changed.",
    ),
    "action": (
        lambda: Confirmation.objects.update(action={"type": "read", "resource": "payments"}),
        "The agent now asks to do something else.",
    ),
    "vkeys": (
        lambda: rotate_key(purpose="audit", actor=TESTER, now=timezone.now()),
        "The keys of the log have changed.",
    ),
    "root": (lambda: None, ""),
    "name": (rename_agent, "and is now called “Other Name”."),
    "suspension": (lambda: Agent.objects.update(suspensions=7), "This was suspended again."),
    "party": (lambda: None, ""),
    "catalogue": (service_moves.other_words, "The service’s own words have changed."),
    "replaces": (
        service_moves.other_approved,
        "Another version of the service’s words is approved now.",
    ),
    "logo": (service_moves.other_logo, "Another logo was uploaded."),
    "replaced_logo": (
        service_moves.other_logo_approved,
        "The logo that people see now is another one.",
    ),
    "warnings": (service_moves.similar_service, "The warnings have changed."),
    "text": (
        lambda: Human.objects.update(time_zone="Asia/Tokyo"),
        "The text to sign is not the one",
    ),
}
SHOWN = {
    Purpose.APPROVAL: {
        "version", "status", "capabilities", "envelope", "agent_name", "agent_key", "manifest",
        "agent_status",
        "service_name", "service_status", "audience", "allowed", "likenesses",
    },
    Purpose.CLAIM: {"agent_name", "agent_key", "manifest", "likenesses", "claim_number", "text"},
    Purpose.CONFIRMATION: {
        "agent_name", "agent_key", "manifest", "service_name", "audience", "likenesses", "action",
        "text",
    },
    Purpose.BREAK: {"vkeys", "root", "text"},
    Purpose.RELEASE: {"agent_name", "service_name", "version"},
    Purpose.RESUME: {"party", "suspension", "name", "text"},
    Purpose.CATALOGUE: {
        "service_name", "audience", "catalogue", "replaces", "warnings", "text",
    },
    Purpose.LOGO: {"service_name", "audience", "logo", "replaced_logo", "warnings", "text"},
}  # fmt: skip
SHOWN[Purpose.SECOND_STEP] = SHOWN[Purpose.APPROVAL]
# These never change alone: the text follows other rows, a new link has another address, break rows
# stay.
STILL = {
    (Purpose.CLAIM, "text"),
    (Purpose.CONFIRMATION, "text"),
    (Purpose.CLAIM, "claim_number"),
    (Purpose.BREAK, "root"),
    # The address names the party; test_resuming.py covers changes of the text.
    (Purpose.RESUME, "party"),
    (Purpose.RESUME, "text"),
    # It follows from the other members.
    (Purpose.CATALOGUE, "text"),
    (Purpose.LOGO, "text"),
}
CASES = [
    (purpose, name)
    for purpose, names in SHOWN.items()
    for name in sorted(names)
    if (purpose, name) not in STILL
]


def test_SA_3_every_ceremony_that_signs_a_text_is_here() -> None:
    assert set(Purpose) - WITHOUT_TEXT == set(CEREMONIES) == set(SHOWN)


@pytest.mark.parametrize("purpose", CEREMONIES)
def test_SA_3_nothing_that_a_page_shows_is_missing_here(purpose: Any, cast: Cast) -> None:
    shown = set(CEREMONIES[purpose](cast).shown().shown)
    if purpose == Purpose.RELEASE:
        assert {name.partition(".")[0] for name in shown} == {"grant", "text"}
    else:
        assert shown == SHOWN[purpose]


@pytest.mark.parametrize(
    ("purpose", "name"), CASES, ids=[f"{purpose}-{name}" for purpose, name in CASES]
)
@pytest.mark.parametrize("when", ["before_press", "before_signature"])
def test_SA_3_whatever_moves_under_a_page_voids_it(
    purpose: Any, name: str, when: str, cast: Cast
) -> None:
    if purpose == Purpose.SECOND_STEP and when == "before_signature":
        # The step ends when it is taken; the statement that follows checks again.
        purpose = Purpose.APPROVAL
    ceremony = CEREMONIES[purpose](cast)
    move, sentence = MOVES[name]
    if when == "before_press":
        move()
        answer = ceremony.press()
    else:
        asked = ceremony.press()
        assert asked.status_code == 200, asked.content
        move()
        answer = ceremony.decide(asked.json()["publicKey"])
    if purpose == Purpose.RELEASE:
        # The proof is checked first, and refuses a grant of another version.
        assert answer.status_code == 409
        assert answer.json()["error"] in {"grant_changed", "invalid_state"}
    else:
        told = assert_refused(answer, 409, "grant_changed")["changes"]
        assert any(sentence in line for line in told), told
    assert not Receipt.objects.filter(kind=purpose).exists()


@pytest.mark.parametrize("purpose", CEREMONIES)
def test_SA_3_a_page_that_was_not_drawn_here_signs_nothing(purpose: Any, cast: Cast) -> None:
    ceremony = CEREMONIES[purpose](cast)
    page = ceremony.shown()
    others = [replace(page, subject="another"), replace(page, purpose=Purpose.VERIFICATION)]
    for drawn in (
        "forged",
        f"x{ceremony.drawn}",
        *(drawn_token(each, now=cast.now) for each in others),
    ):
        assert_refused(ceremony.ask(drawn), 400, "invalid_request")
    assert not Challenge.objects.filter(purpose=purpose, used_at=None).exists()


@pytest.mark.parametrize("purpose", CEREMONIES)
def test_SA_3_a_page_as_it_was_drawn_is_signed(purpose: Any, cast: Cast) -> None:
    ceremony = CEREMONIES[purpose](cast)
    asked = ceremony.press()
    assert asked.status_code == 200, asked.content
    if purpose != Purpose.SECOND_STEP:
        done = ceremony.decide(asked.json()["publicKey"])
        assert done.status_code == 200, done.content
        assert Receipt.objects.filter(kind=purpose).count() == 1
    assert Event.objects.exists()


@pytest.mark.parametrize("purpose", [each for each in CEREMONIES if each != Purpose.SECOND_STEP])
def test_SA_3_a_challenge_without_a_token_is_refused(purpose: Any, cast: Cast) -> None:
    """As the previous release made them."""
    ceremony = CEREMONIES[purpose](cast)
    options = ceremony.press().json()["publicKey"]
    Challenge.objects.filter(purpose=purpose).update(data={})
    before = Receipt.objects.count()
    assert_refused(ceremony.decide(options), 400, "invalid_request")
    assert Receipt.objects.count() == before


def test_SA_3_the_end_that_is_signed_is_the_one_that_was_shown(
    alice: Person, reading: Grant, now: datetime
) -> None:
    page = alice.get(f"/approvals/{reading.pk}/")
    [shown] = [
        line for line, _given in page.context["statement"] if line.startswith("This ends on")
    ]
    drawn = drawn_on(page)
    import time_machine

    with time_machine.travel(timezone.now() + timedelta(minutes=7)):
        options = alice.statement(reading, drawn=drawn).json()["publicKey"]
        assert alice.decide(reading, options).status_code == 200
    assert shown in Receipt.objects.get().consent_text.splitlines()


def test_SA_3_choices_that_were_not_shown_are_not_signed(alice: Person, paying: Grant) -> None:
    drawn, other = alice.drawn(paying), {"permission.0": "on"}
    found = alice.ask(paying, "review", drawn=drawn, choices=other).json()
    assert_refused(
        alice.ask(paying, "statement", drawn=drawn, choices=other, decision="approve"),
        409,
        "grant_changed",
    )
    done = alice.ask(paying, "statement", drawn=found["drawn"], choices=other, decision="approve")
    assert done.status_code == 200
