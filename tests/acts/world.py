"""Where every act of the sweep starts: a user, an administrator, an agent, a service provider."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db.models import Model
from django.test import Client

from agentauth.celery import app
from approvals.tests.cast import Person, registered
from kms.services import ensure_key
from registry.models import Grant, ServiceProvider
from registry.services.service_providers import create_service_provider
from registry.tests.cast import PAY, TESTER, AgentClient, approved, basic, enrolled, issue, pending
from verifier.models import Confirmation
from verifier.services.replay_epochs import read_or_create_row

Act = Callable[[], Any]
FORM = "application/x-www-form-urlencoded"
ALLOWED = ("read:calendar", "write:files", "transact:payments")
FIFTY = {"value": "50.00", "currency": "EUR"}


@dataclass
class World:
    """Each party is created when first named; name it before the act: that is recorded too."""

    now: datetime

    def __post_init__(self) -> None:
        # It is created by the first look, and whether anyone looked is not part of an act.
        read_or_create_row()
        for purpose in ("token", "receipt"):
            ensure_key(purpose=purpose, actor=TESTER, now=self.now)

    @cached_property
    def alice(self) -> Person:
        return registered("alice@example.org", "Alice", now=self.now)

    @cached_property
    def admin(self) -> Person:
        return registered("admin@example.org", "Ada Admin", now=self.now, is_staff=True)

    @cached_property
    def agent(self) -> AgentClient:
        """Alice's agent, active."""
        return enrolled(self.alice.human, now=self.now)

    @cached_property
    def _registered(self) -> tuple[ServiceProvider, str]:
        return create_service_provider(
            name="Acme",
            audience="http://127.0.0.1:8001",
            allowed=ALLOWED,
            actor=TESTER,
            now=self.now,
        )

    @property
    def provider(self) -> ServiceProvider:
        return self._registered[0]

    @property
    def basic(self) -> dict[str, str]:
        return basic(*self._registered)

    @cached_property
    def grant(self) -> Grant:
        """An approved grant for reading the calendar."""
        return approved(self.agent, self.provider, now=self.now)

    @cached_property
    def paying(self) -> Grant:
        """An approved grant for five payments, each above 50.00 only with a confirmation."""
        envelope = {"max_uses": 5, "confirm_above": FIFTY}
        return approved(
            self.agent, self.provider, now=self.now, capabilities=[PAY], envelope=envelope
        )

    @cached_property
    def request(self) -> Grant:
        """A pending grant for writing files."""
        files = [{"type": "write", "resource": "files"}]
        return pending(self.agent, self.provider, now=self.now, capabilities=files)

    @cached_property
    def token(self) -> str:
        return str(issue(self.agent, self.grant).json()["access_token"])

    @cached_property
    def paying_token(self) -> str:
        return str(issue(self.agent, self.paying).json()["access_token"])

    def stray(self) -> tuple[AgentClient, Mapping[str, str]]:
        """An unclaimed agent, and the answer to its registration."""
        client = AgentClient()
        return client, client.register().json()

    def question(
        self, token: str, action: Mapping[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        """A verify request with a fresh proof."""
        url = f"{self.provider.audience}/v1/things"
        proof = self.agent.proof("POST", "", url=url, access_token=token)
        body = {"token": token, "proof": proof, "method": "POST", "url": url} | more
        return body if action is None else body | {"action": dict(action)}

    def payment(self, value: str, operation: str, **more: Any) -> dict[str, Any]:
        amount = {"value": value, "currency": "EUR"}
        action = {"type": "transact", "resource": "payments", "amount": amount}
        return self.question(self.paying_token, action, idempotency_key=operation, **more)

    def ask(self, body: Mapping[str, Any], path: str = "/v1/verify", **headers: str) -> Any:
        """A call by the service provider."""
        return Client().post(
            path, json.dumps(body), content_type="application/json", headers=self.basic | headers
        )

    def post_token(self, path: str, token: str) -> Any:
        """The service provider posts a token as a form."""
        return Client().post(path, f"token={token}", content_type=FORM, headers=self.basic)

    def confirmation(self) -> Confirmation:
        """A payment above the threshold that awaits alice's confirmation."""
        answer = self.ask(self.payment("60.00", "above")).json()
        return Confirmation.objects.get(pk=answer["confirmation_id"])

    def signed(self, person: Person, path: str, body: Mapping[str, Any]) -> Act:
        """`person` posts the signed statement to the `decide` of a page."""
        answer = person.press_on(path, **body)
        assert answer.status_code == 200, answer.content
        credential = person.device.assertion(answer.json()["publicKey"])
        return lambda: person.post(f"{path}decide", {"credential": credential})

    def form(self, person: Person, path: str, **fields: str) -> Act:
        """Post a form together with a passkey signature."""
        signature = json.dumps(person.verification(path))
        return lambda: person.client.post(path, fields | {"verification": signature})

    def button(self, row: Model, action: str) -> Act:
        """Press a button of the admin site."""
        path = f"/admin/{row._meta.app_label}/{row._meta.model_name}/"
        admin = self.admin
        return lambda: admin.client.post(
            path, {"action": action, "_selected_action": [str(row.pk)]}
        )

    def past(self) -> datetime:
        return self.now - timedelta(minutes=1)


def command(name: str, *arguments: str) -> Act:
    """One `manage.py` command, as an operator runs it."""
    return lambda: call_command(name, *arguments, stdout=StringIO())


def task(name: str) -> Act:
    """One periodic task, as the Celery worker runs it."""
    found: Act = app.tasks[name]
    return found


@dataclass(frozen=True)
class Row:
    """One act: its door, what precedes it, and the kinds of event it writes, each once.

    The door is `METHOD route` (plus the button's name on the admin site), `manage.py name` or `task
    name`. `edge` are the kinds written after a refused act was rolled back. `quiet` says why
    something may change without an event.
    """

    door: str
    given: Callable[[World], Act]
    kinds: tuple[str, ...]
    edge: tuple[str, ...] = field(default=())
    quiet: str = ""

    def __str__(self) -> str:
        return self.given.__name__


ROWS: list[Row] = []
_TABLE = Path(__file__).resolve().parents[2] / "docs/acts.md"
_ROLES = re.compile(r"^\| `([^`]+)` \| \w+ \| \w+ \| ([a-z, ]+) \|", re.MULTILINE)


def roles_of() -> dict[str, set[str]]:
    """Each act of the control room, with the roles that may do it as docs/acts.md has them."""
    _before, _title, room = _TABLE.read_text().partition("## Control room\n")
    room = room.partition("\n## ")[0]
    return {act: set(names.split(", ")) for act, names in _ROLES.findall(room)}


def act(
    door: str, *kinds: str, edge: tuple[str, ...] = (), quiet: str = ""
) -> Callable[[Callable[[World], Act]], Callable[[World], Act]]:
    """Register the decorated function, which makes the scene and returns the act."""

    def enter(given: Callable[[World], Act]) -> Callable[[World], Act]:
        ROWS.append(Row(door, given, kinds, edge, quiet))
        return given

    return enter
