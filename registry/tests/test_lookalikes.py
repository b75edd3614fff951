"""Look-alike names: which look the same, and which names an agent's is compared with."""

import unicodedata
from datetime import datetime

import pytest

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.untrusted_text import check_display_name
from registry.models import Agent, Human, ServiceProvider
from registry.services.agents import revoke_agent
from registry.services.humans import create_human
from registry.services.lookalikes import (
    Likeness,
    Whose,
    _prototypes,
    likenesses,
    look_alike,
    mixes_alphabets,
)
from registry.services.service_providers import create_service_provider, revoke_service_provider
from registry.tests.cast import TESTER, AgentClient, assert_refused, enrolled

SAME = [
    ("Gооgle", "Google"),  # Cyrillic о
    ("paypaI", "paypal"),  # capital i
    ("PAYPAL INC", "PayPal Inc"),
    ("paypa1", "PayPal"),
    ("G00GLE", "google"),
    ("Ｇｏｏｇｌｅ", "Google"),  # full-width
    ("𝐆𝐨𝐨𝐠𝐥𝐞", "Google"),  # mathematical bold
    ("Acrne Calendar", "Acme Calendar"),
    ("acme-calendar", "Acme Calendar"),
    ("Acme\u2010Calendar", "Acme Calendar"),
    (
        "Acme\u2014Calendar",
        "Acme Calendar",
    ),  # the table maps this dash, the next and the box drawings to a letter
    ("Acme\u2015Calendar", "Acme Calendar"),
    ("Acme\u2500Calendar", "Acme Calendar"),
    ("Acme\u2501Calendar", "Acme Calendar"),
    ("Acme\uff0dCalendar", "Acme Calendar"),
    ("Аррӏе", "Apple"),  # every letter Cyrillic
    ("ΑΒΒ", "ABB"),  # every letter Greek
    ("ﬁnance", "finance"),  # a ligature
]
OTHER = [
    ("Research Assistant", "Acme Calendar"),
    ("Acme Calendars", "Acme Calendar"),
    ("Café", "Cafe"),
    ("–", "…"),
    ("Борис", "Boris"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_AP_21_names_that_look_the_same_are_found(one: str, other: str) -> None:
    assert look_alike(one, other)
    assert look_alike(other, one)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_AP_21_names_that_differ_to_the_eye_are_not(one: str, other: str) -> None:
    assert not look_alike(one, other)


@pytest.mark.parametrize("name", ["Gооgle", "Ωmega Tool", "Pаypal", "ᏀAMES"])
def test_AP_21_letters_of_several_alphabets_are_found(name: str) -> None:
    assert mixes_alphabets(name)


@pytest.mark.parametrize(
    "name", ["Research 2000!", "Привет", "Café Müller", "日本の Agent", "한국 AI", "中文 ㄅ"]
)
def test_AP_21_alphabets_that_are_written_together_are_not(name: str) -> None:
    assert not mixes_alphabets(name)


def test_AP_21_the_table_is_a_drawing_that_is_drawn_once() -> None:
    """UTS #39 section 4 requires it of confusables.txt: a mapped text maps to itself."""
    table = _prototypes()
    assert len(table) > 6000
    drawn = {each for picture in table.values() for each in picture}
    assert not {each for each in drawn if table.get(each, each) != each}
    assert (table["о"], table["I"], table["1"], table["0"], table["m"]) == (
        "o",
        "l",
        "l",
        "O",
        "rn",
    )


def test_AP_21_no_name_that_may_be_registered_makes_it_fail() -> None:
    for code_point in range(0x20, 0x30000, 7):
        name = unicodedata.normalize("NFC", f"a{chr(code_point)}b")
        try:
            check_display_name(name)
        except (InvalidRequestError, UnicodeEncodeError):
            continue
        assert look_alike(name, name)
        mixes_alphabets(name)


def named(client: AgentClient, name: str) -> Agent:
    """The agent as if registered under this name."""
    Agent.objects.filter(jkt=client.jkt).update(name=name)
    return client.agent()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Acme Calendar", [Likeness(Whose.SERVICE, "Acme Calendar", exact=True)]),
        ("Acrne Ca1endar", [Likeness(Whose.SERVICE, "Acme Calendar")]),
        ("AgentAuth", [Likeness(Whose.REGISTRY, "AgentAuth", exact=True)]),
        ("Agent-Auth", [Likeness(Whose.REGISTRY, "AgentAuth")]),
        ("Iocalhost", [Likeness(Whose.REGISTRY, "localhost")]),
        ("Trip Planner", [Likeness(Whose.AGENT, "Trip Planner", exact=True)]),
        ("Trip PIanner", [Likeness(Whose.AGENT, "Trip Planner")]),
        ("Trip Plаnner", [Likeness(Whose.AGENT, "Trip Planner"), Likeness(Whose.ALPHABETS)]),
        ("Reader", []),
    ],
)
def test_AP_21_name_is_compared_with_services_registry_and_own_agents(
    name: str, found: list[Likeness], alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    named(enrolled(alice, now=now), "Trip Planner")
    assert likenesses(named(enrolled(alice, now=now), name), alice) == found


@pytest.mark.django_db
def test_AP_21_what_is_gone_or_anothers_vouches_for_no_name(
    alice: Human, bob: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    named(enrolled(bob, now=now), "Reader")
    former = named(enrolled(alice, now=now), "Writer")
    agent = named(enrolled(alice, now=now), "Reader")
    assert likenesses(agent, alice) == []
    # An unclaimed agent is compared with the agents of the user who views it.
    assert [each.name for each in likenesses(agent, bob)] == ["Reader"]
    assert likenesses(agent, None) == []
    agent.name = "Writer"
    assert likenesses(agent, alice) != []
    revoke_agent(agent=former, actor=TESTER, now=now)
    assert likenesses(agent, alice) == []
    agent.name = "Acme Calendar"
    assert likenesses(agent, alice) != []
    revoke_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    assert likenesses(agent, alice) == []


@pytest.mark.parametrize(
    "name",
    [
        "Nobody",
        "N0body",
        "NO ONE",
        "No-one",
        "No\u2014one",
        "No\u2015one",
        "No\u2500one",
        "Νobody",
        "No agent",
        "You decline, and so nothing",
        "The agent",
    ],
)
def test_AP_24_a_name_that_reads_as_a_word_of_a_sentence_is_refused(
    name: str, now: datetime, alice: Human
) -> None:
    agent = AgentClient()
    assert_refused(agent.register(manifest=agent.manifest(name=name)), 400, "invalid_manifest")
    agent = enrolled(alice, now=now)
    assert_refused(agent.replace(name=name), 400, "invalid_manifest")
    with pytest.raises(InvalidRequestError, match="name"):
        create_human(email="new@example.org", name=name, actor=TESTER, now=now)
    with pytest.raises(InvalidRequestError, match="name"):
        create_service_provider(name=name, audience="http://127.0.0.1:8077", actor=TESTER, now=now)


def test_AP_24_an_agent_that_was_called_so_before_may_renew(now: datetime, alice: Human) -> None:
    agent = enrolled(alice, now=now)
    Agent.objects.update(name="Nobody")
    assert agent.replace(name="Nobody").status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize(
    "name", ["Young Reader", "You.com Search", "Nonesuch", "Nobody's Fool", "..."]
)
def test_AP_24_a_name_that_only_begins_like_one_is_taken(name: str) -> None:
    agent = AgentClient()
    assert agent.register(manifest=agent.manifest(name=name)).status_code == 201
