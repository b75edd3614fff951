"""The users in the tests of the pages, each with a browser and a software passkey."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.messages.storage.fallback import FallbackStorage
from django.db import transaction
from django.test import Client, RequestFactory

from agentauth.protocol.capability import parse_action
from approvals.passkeys import VerifiedRegistration
from approvals.services.passkey_management import add_passkey, user_handle_of
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.sessions import SessionStore, start_session
from approvals.tests.authenticator import Authenticator
from audit.services import Actor
from registry.models import Grant, Human
from registry.roles import Role
from registry.services.humans import create_human
from registry.tests.cast import PAY, READ_CALENDAR, TESTER
from verifier.models import Confirmation

ORIGIN = settings.ORIGIN
DELETE: dict[str, Any] = {"type": "delete", "resource": "files/scratch"}
__all__ = [
    "DELETE",
    "ORIGIN",
    "PAY",
    "READ_CALENDAR",
    "Person",
    "browser",
    "drawn_on",
    "invited",
    "registered",
    "signed_in",
    "waiting_confirmation",
]


def browser(**headers: str) -> Client:
    """A browser on our own pages: it sends the Origin of its requests."""
    return Client(
        SERVER_NAME="localhost",
        SERVER_PORT="8000",
        headers={"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"} | headers,
    )


def drawn_on(page: Any) -> str:
    """The token of a page that shows a text to sign."""
    [drawn] = re.findall(r'name="drawn" value="([^"]+)"', page.content.decode())
    return str(drawn)


@dataclass
class Person:
    """A user at a browser, with one passkey."""

    client: Client = field(default_factory=browser)
    device: Authenticator = field(default_factory=lambda: Authenticator(origin=ORIGIN))

    @property
    def human(self) -> Human:
        return Human.objects.get(pk=self.client.session["_auth_user_id"])

    def get(self, path: str) -> Any:
        return self.client.get(path)

    def post(self, path: str, body: object = None) -> Any:
        return self.client.post(path, json.dumps(body or {}), content_type="application/json")

    def set_up(self, url: str, *, name: str, email: str) -> Any:
        path = url.removeprefix(ORIGIN)
        options = self.post(f"{path}options", {"name": name, "email": email})
        assert options.status_code == 200, options.content
        credential = self.device.registration(options.json()["publicKey"])
        return self.post(f"{path}finish", {"credential": credential})

    def sign_in(self, client: Client | None = None) -> Any:
        self.client = client or self.client
        options = self.post("/sign-in/options").json()["publicKey"]
        return self.post("/sign-in/finish", {"credential": self.device.assertion(options)})

    def verification(self, path: str, **changes: Any) -> dict[str, Any]:
        """A passkey signature for what will be posted to `path`."""
        options = self.post("/verify/options", {"act": path})
        assert options.status_code == 200, options.content
        return self.device.assertion(options.json()["publicKey"], **changes)

    def press(self, path: str, fields: dict[str, str] | None = None) -> Any:
        """Submit a form whose act requires its own signature."""
        verification = json.dumps(self.verification(path))
        return self.client.post(path, (fields or {}) | {"verification": verification})

    def ready_to_end(self, path: str, **changes: str) -> Callable[[], Any]:
        """Read a page that confirms an end, type the name and sign; returns the final press."""
        page = self.get(path)
        assert page.status_code == 200, page.content
        found = page.context["found"]
        fields = {
            "id": [str(each) for each in page.context["chosen"]],
            "typed": found.typed,
        } | changes
        address = path.partition("?")[0] + found.shown
        if found.typed:
            fields["verification"] = json.dumps(self.verification(address))
        return lambda: self.client.post(address, fields)

    def end(self, path: str, **changes: str) -> Any:
        """Read, type, sign and press."""
        return self.ready_to_end(path, **changes)()

    def ask_passkey(self) -> Any:
        """Creation options for a further passkey, authorised by the existing one."""
        path = "/settings/passkeys/options"
        return self.post(path, {"verification": self.verification(path)})

    def drawn_at(self, path: str) -> str:
        """The token that the page at `path` would return."""
        page = self.get(path)
        assert page.status_code == 200, page.content
        return drawn_on(page)

    def drawn(self, grant: Grant) -> str:
        """The token that the approval page would return."""
        return self.drawn_at(f"/approvals/{grant.pk}/")

    def press_on(self, path: str, **fields: Any) -> Any:
        """Open a page that has a text to sign, and press its button."""
        return self.post(f"{path}statement", {"drawn": self.drawn_at(path)} | fields)

    def ask(self, grant: Grant, act: str, *, drawn: str | None = None, **more: Any) -> Any:
        """One of the approval page's questions; every permission is on unless `choices` differ."""
        everything = {
            f"permission.{index}": "on" for index in range(len(grant.requested_capabilities))
        }
        body = {"choices": everything, "drawn": drawn or self.drawn(grant)} | more
        return self.post(f"/approvals/{grant.pk}/{act}", body)

    def statement(self, grant: Grant, decision: str = "approve", **more: Any) -> Any:
        """Ask as the page does: review the choices, then use the token of the resulting text."""
        if decision == "approve" and "choices" in more:
            found = self.ask(grant, "review", **more).json()
            more["drawn"] = found.get("drawn", more.get("drawn"))
        if decision == "deny" and "drawn" not in more:
            more["drawn"] = self.denial_drawn(grant, more.get("choices", {}).get("reason", ""))
        return self.ask(grant, "statement", decision=decision, **more)

    def decide(self, grant: Grant, options: dict[str, Any], **changes: Any) -> Any:
        credential = self.device.assertion(options, **changes)
        return self.post(f"/approvals/{grant.pk}/decide", {"credential": credential})

    def approve(self, grant: Grant, **choices: str) -> Any:
        """The whole approval, second step included."""
        more: dict[str, Any] = {"choices": choices} if choices else {}
        drawn = self.drawn(grant)
        found = self.ask(grant, "review", drawn=drawn, **more).json()
        drawn = found["drawn"]
        if found["dangerous"]:
            assert self.ask(grant, "second-step", drawn=drawn, **more).status_code == 200
        options = self.statement(grant, drawn=drawn, **more)
        assert options.status_code == 200, options.content
        return self.decide(grant, options.json()["publicKey"])

    def denial_drawn(self, grant: Grant, reason: str = "") -> str:
        """The approval page's token with this reason typed in."""
        page = self.get(f"/approvals/{grant.pk}/").content.decode()
        [drawn] = re.findall(r'name="denial_drawn" value="([^"]+)"', page)
        if not reason:
            return str(drawn)
        found = self.post(
            f"/approvals/{grant.pk}/review-denial", {"reason": reason, "drawn": drawn}
        )
        assert found.status_code == 200, found.content
        return str(found.json()["drawn"])

    def deny(self, grant: Grant, reason: str = "") -> Any:
        options = self.statement(grant, "deny", choices={"reason": reason})
        assert options.status_code == 200, options.content
        return self.decide(grant, options.json()["publicKey"])

    def deny_as_admin(self, grant: Grant, reason: str = "Not here.", **changes: Any) -> Any:
        """Sign the denial of another user's request, or return the refusal of its statement."""
        path = f"/denials/{grant.pk}/"
        shown = self.post(f"{path}review", {"drawn": self.drawn_at(path), "reason": reason})
        assert shown.status_code == 200, shown.content
        asked = self.post(f"{path}statement", {"drawn": shown.json()["drawn"], "reason": reason})
        if asked.status_code != 200:
            return asked
        credential = self.device.assertion(asked.json()["publicKey"], **changes)
        return self.post(f"{path}decide", {"credential": credential})

    def resume(self, path: str) -> Any:
        """Sign a resume on this page; or return the refusal of its statement."""
        page = self.get(path)
        drawn = drawn_on(page) if page.status_code == 200 else ""
        asked = self.post(f"{path}statement", {"drawn": drawn})
        if asked.status_code != 200:
            return asked
        credential = self.device.assertion(asked.json()["publicKey"])
        return self.post(f"{path}decide", {"credential": credential})


@contextmanager
def signed_in(*people: Person) -> Iterator[None]:
    """Their cookies are afterwards those of before, even if a test signs them out."""
    cookies = [deepcopy(person.client.cookies) for person in people]
    yield
    for person, kept in zip(people, cookies, strict=True):
        person.client.cookies = kept


def invited(
    email: str, name: str, *, now: datetime, is_staff: bool = False, role: Role | None = None
) -> Person:
    """A new user who accepted an invitation and is signed in; `is_staff`: as an owner."""
    person = Person()
    role = Role.OWNER if is_staff else role
    link = create_setup_link(email=email, role=role, actor=TESTER, now=now)
    done = person.set_up(link.url, name=name, email=email)
    assert done.status_code == 200, done.content
    return person


def registered(
    email: str, name: str, *, now: datetime, is_staff: bool = False, role: Role | None = None
) -> Person:
    """What `invited` gives, in half of its time: without the invitation and without HTTP."""
    person = Person()
    device = person.device
    device.sign_count = 1
    passkey = VerifiedRegistration(
        credential_id=device.credential_id,
        public_key=device.public_key,
        sign_count=device.sign_count,
        aaguid=str(UUID(int=0)),
        backup_eligible=False,
        backed_up=False,
        transports=("internal",),
    )
    request = RequestFactory().get("/")
    request.session = SessionStore()
    request._messages = FallbackStorage(request)  # type: ignore[attr-defined]
    with transaction.atomic():
        human = create_human(
            email=email,
            name=name,
            role=Role.OWNER if is_staff else role,
            language=settings.LANGUAGE_CODE,
            actor=TESTER,
            now=now,
        )
        device.user_handle = user_handle_of(human)
        by_them = Actor("human", str(human.pk), "")
        add_passkey(human, passkey, device.user_handle, actor=by_them, now=now)
        start_session(request, human, now=now)
        request.session.save()
    person.client.cookies[settings.SESSION_COOKIE_NAME] = str(request.session.session_key)
    return person


def waiting_confirmation(
    grant: Grant, now: datetime, *, key: str = "invoice-1", **members: Any
) -> Confirmation:
    """A payment of 60.00 EUR, or of what `members` of its action say, that waits for its owner."""
    action: dict[str, Any] = {
        "type": "transact",
        "resource": "payments",
        "amount": {"value": "60.00", "currency": "EUR"},
        **members,
    }
    return Confirmation.objects.create(
        grant=grant,
        grant_version=grant.version,
        action=action,
        action_digest=parse_action(action).digest(),
        idempotency_key=key,
        created_at=now,
        expires_at=now + timedelta(hours=1),
    )
