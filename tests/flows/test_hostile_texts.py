"""Hostile texts stay text: a page has the same elements and attributes as with harmless words.

They come from agents, service providers and invited users. Values with a fixed form (a resource, an
argument's name, a host) are refused on input; the rest is shown as written.

Every writable field holds them, and an administrator reads all pages; the application runs in this
process, on the test's own database.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from html.parser import HTMLParser
from urllib.parse import quote, urlencode

import pytest
from django.conf import settings

from agentauth.protocol.jose import sign_compact
from approvals.admin_site import site
from approvals.models import Receipt
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import ORIGIN, Person, browser, waiting_confirmation
from kms.services import ensure_key
from registry.models import Grant
from registry.roles import Role
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.service_providers import change_audience, create_service_provider
from registry.tests.cast import (
    PAY,
    READ_CALENDAR,
    TESTER,
    AgentClient,
    approve,
    assert_refused,
    claim_link,
    pending,
)
from tests.endpoints import FOR_PROGRAMS, ROUTES, address
from tests.sampling import one_in
from verifier.models import Confirmation

pytestmark = [pytest.mark.django_db, pytest.mark.sweep]

# Elements and templates; attributes and scripts; addresses and formats; premature ends and
# entities.
TEXTS = [
    "<script>alert(1)</script>{{7*7}}{% debug %}${7*7}",
    "\"><img src=x onerror=alert(1)>'-alert(1)-'",
    "javascript:alert(1) %(agent)s %s %d {0} {agent}",
    "</title></textarea><svg/onload=x>&lt;b&gt;--><!--<b>]]>",
]
# CI tries the first everywhere, `make long` all.
EACH_TEXT = one_in(len(TEXTS), TEXTS)
# Every field an outsider writes, by the first word of its text.
FIELDS = {"agent", "about", "reason", "service", "human", "value", "memo", "key", "why", "mail"}
# The routes that are pages with texts of others.
PAGES = [route for route in ROUTES if not route.startswith((*FOR_PROGRAMS, "/docs", "/admin"))]
# Lists all people and services, so it grows with each scene.
LISTS_ALL = {"/approvers/"}
LINKS = (
    "href",
    "src",
    "action",
    "formaction",
    "data-options",
    "data-finish",
    "data-base",
    "content",
)


class Read(HTMLParser):
    """A page as a browser parses it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _value in attrs)))
        self.links += [value or "" for name, value in attrs if name in LINKS]
        self.words += [value or "" for _name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", ()))


@dataclass
class Scene:
    """A registry whose every writable field says `text`; the agents belong to an administrator."""

    text: str
    now: datetime
    number: int
    admin: Person = field(init=False)
    paths: list[str] = field(default_factory=list)

    def says(self, word: str) -> str:
        return f"{word} {self.text}"

    def __post_init__(self) -> None:
        self.admin = self.come_in()
        self.provider, _secret = create_service_provider(
            name=self.says("service"),
            audience=f"http://127.0.0.1:{9000 + self.number}",
            allowed=["read:calendar", "write:files", "transact:payments"],
            actor=TESTER,
            now=self.now,
        )
        agent = self.agent(owned=True)
        grants = [self.asked(agent, path) for path in ("a", "b", "c", "d")]
        waiting, approved, denied, to_sign = grants
        # Shorter than asked for, so that the page offers a renewal, whatever the second.
        for_a_day = {"permission.0": "on", "days": "1"}
        assert self.admin.approve(approved, **for_a_day).status_code == 200
        assert self.admin.deny(denied, self.says("why")).status_code == 200
        assert self.admin.approve(to_sign, **for_a_day).status_code == 200
        # One of the two is signed again before its receipt is read; the other keeps waiting.
        change_audience(
            service_provider=self.provider,
            audience=f"http://127.0.0.1:{9500 + self.number}",
            actor=TESTER,
            now=self.now,
        )
        assert self.admin.approve(approved).status_code == 200
        paying = pending(
            agent,
            self.provider,
            now=self.now,
            capabilities=[PAY | {"constraints": {"payee": {"in": [self.says("value")]}}}],
        )
        approve(paying, self.admin.human, now=self.now)
        stray = self.agent(owned=False)
        setup = create_setup_link(email=self.mail("new"), actor=TESTER, now=self.now).url
        common = {
            "agent_id": str(agent.agent().pk),
            "confirmation_id": str(self.confirmation(paying).pk),
        }
        common |= {
            "secret": claim_link(stray.agent())[0].split("/")[-2],
            "code": setup.split("/")[-2],
        }
        for route in PAGES:
            for grant in (
                [waiting, approved, denied, to_sign] if "<uuid:grant_id>" in route else [waiting]
            ):
                self.paths.append(address(route, common | {"grant_id": str(grant.pk)}))

    def mail(self, word: str) -> str:
        """The most hostile address RFC 5321 allows: its local part quoted, without a space."""
        inside = re.sub(r"[^!#-\[\]-~]", "", self.text.replace(" ", "/"))
        return f'"mail{self.number}{word}{inside}"@example.org'

    def come_in(self) -> Person:
        person = Person(client=browser(**{"User-Agent": self.text}))
        link = create_setup_link(email=self.mail("a"), role=Role.OWNER, actor=TESTER, now=self.now)
        done = person.set_up(link.url, name=self.says("human"), email=self.mail("a"))
        assert done.status_code == 200, done.content
        return person

    def agent(self, *, owned: bool) -> AgentClient:
        client = AgentClient()
        manifest = client.manifest(name=self.says("agent"), description=self.says("about"))
        code = None
        if owned:
            code = create_enrolment_code(human=self.admin.human, actor=TESTER, now=self.now)[1]
        assert client.register(code, manifest=manifest).status_code == 201
        return client

    def asked(self, agent: AgentClient, path: str) -> Grant:
        constraint = {"constraints": {"label": {"eq": self.says("value")}}}
        wish = READ_CALENDAR | {"resource": f"calendar/{path}"} | constraint
        return pending(
            agent, self.provider, now=self.now, capabilities=[wish], reason=self.says("reason")
        )

    def confirmation(self, grant: Grant) -> Confirmation:
        arguments = {"memo": self.says("memo"), "payee": self.says("value")}
        return waiting_confirmation(grant, self.now, key=self.says("key"), arguments=arguments)

    def read(self) -> Iterator[tuple[str, Read]]:
        for path in self.paths:
            answer = self.admin.client.get(path, headers={"Accept": "text/html"})
            if answer.status_code in {200, 404, 410} and "html" in answer["Content-Type"]:
                yield (
                    re.sub(r"[0-9a-f-]{36}|/[\w-]{22,43}/", "…", path),
                    Read(answer.content.decode()),
                )


@pytest.fixture
def keys(db: None, now: datetime) -> None:
    for purpose in ("token", "receipt"):
        ensure_key(purpose=purpose, actor=TESTER, now=now)


def inert(page: Read, text: str, place: str) -> None:
    """No text may cause these on any page."""
    for tag, names in page.elements:
        assert not [name for name in names if name.startswith("on") or name == "style"], place
        assert tag not in {"svg/onload=x", "b", "comment"}, place
        assert tag != "script" or "src" in names, place
    for link in page.links:
        assert not re.match(r"\s*(javascript|data|vbscript):", link, re.IGNORECASE), place
    assert "49" not in text
    # A template that evaluated the text: the number alone (a random token may begin with it).
    assert not [word for word in page.words if re.search(r"49\{|\$49|^49(?!\w)", word)], place


@pytest.mark.parametrize("text", EACH_TEXT)
def test_AP_19_what_strangers_write_is_text_on_every_page(
    text: str, keys: None, now: datetime
) -> None:
    plain = list(Scene("x" * len(text), now, 1).read())
    hostile = list(Scene(text, now, 2).read())
    assert [place for place, _page in hostile] == [place for place, _page in plain]
    assert len(hostile) > len(PAGES) / 3
    for (place, page), (_place, model) in zip(hostile, plain, strict=True):
        inert(page, text, place)
        # The same elements with the same attributes, whatever the words.
        assert page.elements == model.elements or place in LISTS_ALL, place
    # Quotation marks inside quoted text are escaped.
    shown = {text, text.replace('"', "\\u{22}")}
    told = {
        word
        for _place, page in hostile
        for each in page.words
        for word in FIELDS
        if any(f"{word} {form}" in each for form in shown)
    }
    # A mail address has no spaces; the inbox and the receipt show the texts of these two.
    assert told | {"mail"} == FIELDS
    assert Receipt.objects.filter(consent_text__contains=text.replace('"', "\\u{22}")).exists()


@pytest.mark.parametrize("text", EACH_TEXT)
def test_AP_19_nor_in_the_control_room(text: str, keys: None, now: datetime) -> None:
    """Every list and row of the control room, with the text as a search term too."""
    scene, read = Scene(text, now, 1), []
    for model in site._registry:
        base = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        paths = [base, f"{base}?{urlencode({'q': text})}", f"{base}?{urlencode({'nothing': text})}"]
        paths += [f"{base}{row.pk}/change/" for row in model._default_manager.all()[:20]]
        paths += [f"{base}{row.pk}/history/" for row in model._default_manager.all()[:1]]
        for path in paths:
            answer = scene.admin.client.get(path, follow=True)
            assert answer.status_code == 200, path
            read.append(Read(answer.content.decode()))
            inert_in_admin(read[-1], path)
    read.append(Read(scene.admin.get("/admin/").content.decode()))
    inert_in_admin(read[-1], "/admin/")
    told = {
        word for page in read for each in page.words for word in FIELDS if f"{word} {text}" in each
    }
    assert told >= {"agent", "about", "reason", "service", "human"}


def inert_in_admin(page: Read, place: str) -> None:
    """Django's own pages contain these comments and styles whatever the data."""
    for tag, names in page.elements:
        assert not [name for name in names if name.startswith("on")], place
        assert tag not in {"svg/onload=x", "b"}, place
        assert tag != "script" or "src" in names, place
    assert not [
        link for link in page.links if re.match(r"\s*(javascript|vbscript|x$)", link, re.IGNORECASE)
    ]
    assert not [word for word in page.words if "49{" in word or "$49" in word], place


@pytest.mark.parametrize("text", EACH_TEXT)
def test_AP_19_what_an_address_carries_is_text_or_nothing(
    text: str, keys: None, now: datetime
) -> None:
    """A hostile link: its query and path appear on pages as text or not at all."""
    scene = Scene("plain words", now, 1)
    query = urlencode(
        dict.fromkeys(("next", "after", "agent", "grant", "format", "claimed", "hop", "q"), text)
    )
    for client in (scene.admin.client, browser()):
        for path in [
            *(f"{each}?{query}" for each in scene.paths),
            f"/{quote(text, safe='')}/",
            "/approvals/x/",
        ]:
            answer = client.get(path, headers={"Accept": "text/html"})
            assert answer.status_code < 500, path
            if answer.status_code == 302:
                assert answer["Location"].startswith("/"), path
                assert not answer["Location"].startswith("//"), path
            elif "html" in answer["Content-Type"]:
                inert(Read(answer.content.decode()), text, path)


@pytest.mark.parametrize("text", [text for text in TEXTS if text.isascii()])
def test_AP_19_what_has_a_form_is_refused_where_it_comes_in(
    text: str, keys: None, now: datetime
) -> None:
    scene = Scene("plain words", now, 1)
    client = scene.agent(owned=True)
    claims = {
        "aud": settings.ISSUER,
        "iat": int(now.timestamp()),
        "exp": int(now.timestamp()) + 86_400,
    }
    claims |= {"jti": "1", "name": "Agent", "model_origin": text, "capabilities": [READ_CALENDAR]}
    stranger = AgentClient()
    header = {"jwk": stranger.signer.public.jwk}
    manifest = sign_compact(claims, stranger.signer, typ="agent-manifest+jwt", header=header)
    assert_refused(stranger.register(manifest=manifest), 400, "invalid_manifest")
    for changes in (
        {"resource": text},
        {"type": text},
        {"type": "custom", "namespace": text, "name": "x"},
        {"constraints": {text: {"eq": 1}}},
        {"constraints": {"a": {text: 1}}},
    ):
        assert_refused(
            client.ask(scene.provider, capabilities=[READ_CALENDAR | changes]),
            400,
            "invalid_request",
        )
    assert_refused(client.ask(scene.provider, envelope={text: 1}), 400, "invalid_request")


def test_AP_19_a_passkey_has_the_name_we_give_it(keys: None, now: datetime) -> None:
    scene = Scene("plain words", now, 1)
    options = scene.admin.ask_passkey().json()["publicKey"]
    credential = Authenticator().registration(options)
    body = {"credential": credential | {"name": TEXTS[0]}, "name": TEXTS[0]}
    assert scene.admin.post("/settings/passkeys/finish", body).status_code == 200
    page = Read(scene.admin.get("/settings/").content.decode())
    inert(page, "", "/settings/")
    assert not [word for word in page.words if "alert(1)" in word]


def test_AP_19_the_scenes_are_read_as_json_too(keys: None, now: datetime) -> None:
    """The JSON that the approval page's script inserts as text: served with its own media type."""
    scene = Scene(TEXTS[0], now, 1)
    grant = Grant.objects.filter(status="pending", agent__human=scene.admin.human).first()
    assert grant is not None
    answer = scene.admin.ask(grant, "review")
    assert answer["Content-Type"] == "application/json"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert TEXTS[0] in json.dumps(answer.json())
    assert ORIGIN not in answer.json()
