"""Outsiders' names and words on pages and in signed texts: names look like names, nothing hides."""

from datetime import datetime

import pytest

from agentauth.protocol.tests.test_untrusted_text import code_points
from approvals.models import Receipt
from approvals.quotation_marks import quoted
from approvals.templatetags.display_filters import set_apart, spoken
from approvals.tests.cast import PAY, READ_CALENDAR, Person, waiting_confirmation
from audit.models import Event
from kms.tests.sealing import change
from registry.models import Agent, Human, ServiceProvider
from registry.tests.cast import AgentClient, approve, claim_link, pending

pytestmark = pytest.mark.django_db
# Refused on input; an agent may have registered one before this rule.
TURNING = ["Nobody", "No agent", "You decline, and so nothing", "Bot” may not act. “Nobody"]
HIDDEN = "\u202e\u200b\u2065\ufff0\U000e0fff\U000e0041"
SHOWN = "\\u{202e}\\u{200b}\\u{2065}\\u{fff0}\\u{e0fff}\\u{e0041}"


def turned(text: str, name: str) -> list[str]:
    """Places where the name is outside our quotation marks, or closes them with its own mark."""
    quoted = text.replace("“" + name.replace("“", "\\u{201c}").replace("”", "\\u{201d}") + "”", "")
    return [line for line in quoted.splitlines() if name in line]


@pytest.mark.parametrize("name", TURNING)
def test_AP_24_the_signed_sentences_cannot_be_turned_by_a_name(
    name: str, alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    stray = AgentClient()
    stray.register()
    Agent.objects.update(name=name)
    change(ServiceProvider.objects.all(), name=name)
    grants = [
        pending(agent, service_provider, now=now, capabilities=[each])
        for each in (PAY, READ_CALENDAR, PAY | {"resource": "payments/x"})
    ]
    assert alice.approve(grants[0]).status_code == 200
    assert alice.deny(grants[1], "No.").status_code == 200
    row = waiting_confirmation(approve(grants[2], alice.human, now=now), now)
    url, code = claim_link(stray.agent())
    for path, fields in (
        (f"/confirmations/{row.pk}/", {"decision": "confirm"}),
        (url.removeprefix("http://localhost:8000"), {"code": code}),
    ):
        options = alice.press_on(path, **fields).json()["publicKey"]
        done = alice.post(f"{path}decide", {"credential": alice.device.assertion(options)})
        assert done.status_code == 200
    # The first receipt belongs to the earlier grant.
    _, *texts = Receipt.objects.order_by("created_at", "id").values_list("consent_text", flat=True)
    assert len(texts) == 4
    for text in texts:
        assert not turned(text, name)
        first, *lines = text.splitlines()
        assert first.startswith("Agent: “")
        for line in lines:
            assert line.startswith(
                ("Service: “", "The agent may ", "This ", "Its key", "At ", "You have", "Reason")
            )
    receipt = alice.get(f"/approvals/{grants[0].pk}/receipt/").content.decode()
    assert not turned(receipt, name)


@pytest.mark.parametrize("name", TURNING[:3])
def test_AP_24_no_page_says_a_name_outside_quotation_marks(
    name: str, alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    Agent.objects.update(name=name)
    Human.objects.update(name=name)
    grant = pending(agent, service_provider, now=now)
    row = waiting_confirmation(
        approve(
            pending(agent, service_provider, now=now, capabilities=[PAY]), alice.human, now=now
        ),
        now,
    )
    paths = [
        f"/approvals/{grant.pk}/",
        f"/confirmations/{row.pk}/",
        "/approvals/",
        "/agents/",
        "/activity/",
        f"/activity/{Event.objects.filter(agent_id=grant.agent_id).latest('id').pk}/",
    ]
    for path in [*paths, f"/agents/{grant.agent_id}/"]:
        page = alice.get(path).content.decode()
        # The reader's own name is at the sign-out button.
        page = page.replace(f'title="{name}, alice@example.org"', "")
        assert name in page, path
        assert not turned(page, name), path


@pytest.mark.parametrize("name", [*TURNING, f"x{HIDDEN}"])
def test_AP_24_the_lists_an_administrator_signs_from_quote_names(
    name: str,
    admin: Person,
    alice: Person,
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
) -> None:
    waits = pending(agent, service_provider, now=now)
    decided = approve(
        pending(agent, service_provider, now=now, capabilities=[PAY]), alice.human, now=now
    )
    Agent.objects.update(name=name)
    page = admin.get(f"/denials/?id={waits.pk}&id={decided.pk}").content.decode()
    shown = quoted(name)
    assert page.count(f"Deny {shown}</a>") == 1
    assert page.count(f"<li>{shown}: ") == 1


def test_SA_4_what_does_not_show_is_escaped_and_marked(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    wish = READ_CALENDAR | {"constraints": {"label": {"eq": f"value{HIDDEN}"}}}
    grant = pending(agent, service_provider, now=now, capabilities=[wish], reason=f"reason{HIDDEN}")
    paid = approve(
        pending(agent, service_provider, now=now, capabilities=[PAY]), alice.human, now=now
    )
    Agent.objects.update(description=f"description{HIDDEN}")
    page = alice.get(f"/approvals/{grant.pk}/").content.decode()
    marked = "".join(
        f'<span class="escape">{each}</span>' for each in SHOWN.replace("\\", " \\").split()
    )
    for word in ("reason", "description"):
        assert word + marked in page
    # Once: the text to sign is the page.
    assert page.count(f"value{SHOWN}") == 1
    assert alice.deny(grant, f"denied{HIDDEN}").status_code == 200
    decided = alice.get(f"/approvals/{grant.pk}/").content.decode()
    assert "denied" + marked in decided
    signed = Receipt.objects.get(subject=str(grant.pk)).consent_text
    assert f"denied{SHOWN}" in signed
    row = waiting_confirmation(paid, now, arguments={"memo": f"memo{HIDDEN}"})
    asked = alice.get(f"/confirmations/{row.pk}/").content.decode()
    assert f"memo{SHOWN}" in asked
    for text in (page, decided, asked, signed):
        assert not set(text) & set(code_points())


def test_SA_4_each_default_ignorable_code_point_is_marked() -> None:
    for character in code_points():
        assert (
            spoken(f"a{character}b") == f'a<span class="escape">\\u{{{ord(character):x}}}</span>b'
        )


def test_each_name_and_value_is_set_apart_from_our_words() -> None:
    memo = quoted('x" and “<b>nothing</b>” else')
    shown = set_apart(f"Pay €60.00 at {quoted('Acme')}, with memo {memo}.")
    inside = "x\\u{22} and \\u{201c}&lt;b&gt;nothing&lt;/b&gt;\\u{201d} else"
    assert shown == (
        'Pay €60.00 at <span class="name">“Acme”</span>, with memo <span '
        f'class="name">“{inside}”</span>.'
    )


def test_the_claim_page_says_in_sentences_what_an_agent_may_ask_for(alice: Person) -> None:
    stray = AgentClient()
    stray.register()
    path = claim_link(stray.agent())[0].removeprefix("http://localhost:8000")
    page = alice.get(path).content.decode()
    for act in ("Read", "Pay through"):
        assert f'<li><span>{act} <span class="name">“' in page
    assert "transact:payments" not in page
