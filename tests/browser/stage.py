"""Sets up scenes through the services, for tests/browser/backstage.py: one JSON object a line.

A scene is name → path. Everything a user can meet on the pages, at realistic ages; only what needs
a passkey is left to the browser.
"""

import io
import json
import os
import secrets
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")

Json = dict[str, Any]
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)


def euros(value: str) -> Json:
    return {"value": value, "currency": "EUR"}


READ = {"type": "read", "resource": "calendar"}
PAY = {"type": "transact", "resource": "payments", "max_amount": euros("100.00")}
BUDGET = {**euros("500.00"), "period": "day", "zone": "Europe/Berlin"}
PAYMENT = {
    "type": "transact",
    "resource": "payments",
    "amount": euros("80.00"),
    "arguments": {"payee": "ACME GmbH", "invoice": "2026-1146", "express": True},
}
SPENDING = {
    "confirm_above": euros("50.00"),
    "budgets": [BUDGET],
    "max_requests_per_minute": 30,
    "max_uses": 200,
}
MANY: list[Json] = [
    {"type": "read", "resource": "calendar/work"},
    {"type": "read", "resource": "files/reports", "constraints": {"size": {"max": 1_048_576}}},
    {"type": "write", "resource": "calendar/work", "constraints": {"attendees": {"max": 20}}},
    {"type": "write", "resource": "files/reports/2026/quarterly-summaries-of-every-subsidiary"},
    {
        "type": "transact",
        "resource": "payments",
        "max_amount": euros("1250.00"),
        "constraints": {"payee": {"in": ["ACME GmbH", "Stadtwerke", "Deutsche Bahn"]}},
    },
    {"type": "delete", "resource": "files/scratch"},
    {
        "type": "custom",
        "namespace": "com.acme",
        "name": "print",
        "resource": "printers/second-floor",
    },
]
MANY_LIMITS: Json = {
    "max_requests_per_minute": 12,
    "max_burst": 4,
    "max_uses": 500,
    "confirm_above": euros("250.00"),
    "budgets": [
        {**euros("2500.00"), "period": "day", "zone": "Europe/Berlin"},
        {**euros("20000.00"), "period": "month", "zone": "Europe/Berlin"},
    ],
    "allowed_time_windows": [
        {
            "days": ["mon", "tue", "wed", "thu", "fri"],
            "start": "08:00",
            "end": "18:30",
            "zone": "Europe/Berlin",
        }
    ],
    "requires_human_online": True,
}
ALLOWED = [
    "read:calendar",
    "write:calendar",
    "read:files",
    "write:files",
    "delete:files",
    "transact:payments",
    "custom:com.acme.print:printers",
]
WISHES = [
    {"type": "read", "resource": "calendar"},
    {"type": "write", "resource": "calendar"},
    {"type": "read", "resource": "files"},
    {"type": "write", "resource": "files"},
    {"type": "delete", "resource": "files"},
    {"type": "transact", "resource": "payments", "max_amount": euros("5000.00")},
    {"type": "custom", "namespace": "com.acme", "name": "print", "resource": "printers"},
]


class Stage:
    """What exists so far, and how to add more; `paths` is what the browser opens."""

    def __init__(self, email: str) -> None:
        from audit.services import Actor
        from registry.models import Human

        self.now = datetime.now(UTC)
        self.human = Human.objects.get(email=email)
        self.alice = Actor("human", str(self.human.pk))
        self.system = Actor("system", "stage")
        self.paths: dict[str, str] = {}

    def service_provider(self, name: str, audience: str) -> Any:
        from registry.services.service_providers import create_service_provider

        return create_service_provider(
            name=name,
            audience=audience,
            allowed=ALLOWED,
            actor=self.system,
            now=self.now - 20 * DAY,
        )[0]

    def agent(self, name: str, description: str, ago: timedelta, *, owned: bool = True) -> Any:
        """An agent that registered `ago`; the pause keeps ids in chronological order."""
        from django.conf import settings

        from agentauth.protocol.agent_manifest import sign_manifest, verify_manifest
        from agentauth.protocol.capability import parse_capabilities
        from agentauth.protocol.keys import LocalSigner, PrivateKey
        from registry.services import agent_registration, enrolment_codes

        time.sleep(0.002)
        at = self.now - ago
        seconds = int(at.timestamp())
        manifest = sign_manifest(
            LocalSigner(PrivateKey.generate()),
            audience=settings.ISSUER,
            issued_at=seconds,
            expires_at=seconds + 80 * 86_400,
            jti=secrets.token_urlsafe(16),
            name=name,
            description=description,
            model_origin="models.example.com",
            capabilities=parse_capabilities(WISHES),
        )
        verified = verify_manifest(manifest, expected_audience=settings.ISSUER, now=seconds)
        code = (
            enrolment_codes.create_enrolment_code(human=self.human, actor=self.alice, now=at)[1]
            if owned
            else None
        )
        return agent_registration.register_agent(
            manifest=verified, enrolment_code=code, actor=self.system, now=at
        ).agent

    def request(
        self, agent: Any, at: Any, ago: timedelta, terms: Sequence[Json], **more: Any
    ) -> Any:
        from agentauth.protocol.behavioural_envelope import parse_envelope
        from agentauth.protocol.capability import parse_capabilities
        from audit.services import Actor
        from registry.services.grant_requests import GrantRequest, request_grant

        time.sleep(0.002)
        wish = GrantRequest(
            service_provider=at,
            capabilities=parse_capabilities(list(terms)),
            envelope=parse_envelope(more.get("envelope", {})),
            seconds=more.get("days", 30) * 86_400,
            reason=more.get("reason", ""),
        )
        actor = Actor("agent", str(agent.pk))
        return request_grant(agent=agent, asked=wish, actor=actor, now=self.now - ago)[0]

    def approved(
        self, agent: Any, at: Any, ago: timedelta, terms: Sequence[Json], **more: Any
    ) -> Any:
        from agentauth.protocol.behavioural_envelope import parse_envelope
        from agentauth.protocol.capability import parse_capabilities
        from tests import receipts

        grant = self.request(agent, at, ago + 5 * MINUTE, terms, **more)
        receipts.approve(
            grant,
            self.human,
            capabilities=parse_capabilities(list(terms)),
            envelope=parse_envelope(more.get("envelope", {})),
            actor=self.alice,
            now=self.now - ago,
        )
        return grant

    def confirmation(self, grant: Any, amount: str, ago: timedelta) -> Any:
        from django.db import transaction

        from agentauth.protocol.capability import parse_action
        from audit.services import Actor
        from verifier.models import Confirmation
        from verifier.services.confirmation_lifecycle import request_confirmation

        action = parse_action(
            {
                "type": "transact",
                "resource": "payments",
                "amount": euros(amount),
                "arguments": {"payee": "ACME GmbH", "invoice": "2026-1147"},
            }
        )
        with transaction.atomic():
            found, _wait = request_confirmation(
                grant=grant,
                action=action,
                key=secrets.token_hex(8),
                may_create=True,
                actor=Actor("agent", str(grant.agent_id)),
                now=self.now - ago,
            )
        assert found is not None
        return Confirmation.objects.get(pk=found)

    def decision(
        self,
        grant: Any,
        ago: timedelta,
        kind: str,
        outcome: str,
        refused: Sequence[str] = (),
        action: Json | None = None,
    ) -> None:
        """The event of one decision, as the verifier records it."""
        from django.db import transaction

        from audit.services import Actor, record
        from verifier.stores.decision_audit_events import split

        label = "transact:payments" if outcome == "success" else None
        plain, personal = split({"action": action or PAYMENT}, label)
        with transaction.atomic():
            record(
                kind=kind,
                actor=Actor("service_provider", str(grant.service_provider_id)),
                at=self.now - ago,
                outcome=outcome,
                reason=refused[1] if refused else None,
                data=plain | ({"error": refused[0]} if refused else {}),
                personal=personal,
                agent_id=grant.agent_id,
                human_id=self.human.pk,
                service_provider_id=grant.service_provider_id,
                grant_id=grant.pk,
            )


def decided_grants(stage: Stage, agent: Any, calendar: Any, files: Any) -> None:
    """One request in each state that needs no receipt."""
    from registry.services import grant_requests, grants

    scene = {
        "expired": stage.request(
            agent, calendar, 9 * DAY, [MANY[0]], reason="To plan the offsite."
        ),
        "withdrawn": stage.request(agent, calendar, 8 * DAY, [MANY[2]]),
        "revoked": stage.approved(agent, calendar, 7 * DAY, [READ, MANY[2]]),
        "suspended": stage.approved(
            agent, files, 6 * DAY, [{"type": "read", "resource": "files/old"}]
        ),
        "anew": stage.approved(
            agent, files, 5 * DAY, [MANY[1], MANY[5]], envelope={"max_uses": 40}
        ),
    }
    grant_requests.withdraw_grant(
        grant=scene["withdrawn"], actor=stage.system, now=stage.now - 8 * DAY + 4 * MINUTE
    )
    grants.revoke_grant(grant=scene["revoked"], actor=stage.alice, now=stage.now - 2 * DAY)
    grants.suspend_grant(grant=scene["suspended"], actor=stage.alice, now=stage.now - DAY)
    grants.suspend_grant(
        grant=scene["anew"], actor=stage.system, now=stage.now - HOUR, cause="audience_changed"
    )
    stage.paths |= {name: f"/approvals/{grant.pk}/" for name, grant in scene.items()}


def spending(stage: Stage, agent: Any, pay: Any) -> None:
    """A grant in use: part of the day's budget spent, one payment waiting, three answered."""
    from audit import kinds
    from verifier.models import Confirmation, GrantLedger
    from verifier.services import confirmation_lifecycle

    grant = stage.approved(
        agent, pay, 4 * DAY, [PAY], envelope=SPENDING, reason="To pay your invoices."
    )
    stage.paths["in-use"] = f"/approvals/{grant.pk}/"
    # Today in Berlin, since the ledger names its days in that zone.
    today = stage.now.astimezone(ZoneInfo("Europe/Berlin")).date().isoformat()
    GrantLedger.objects.create(
        grant=grant, uses=37, spent={"EUR/day/Europe/Berlin": [today, 43_150]}
    )
    expired = stage.confirmation(grant, "81.00", 3 * DAY)
    denied = stage.confirmation(grant, "99.00", DAY)
    confirmation_lifecycle.deny(
        confirmation=denied, human=stage.human, actor=stage.alice, now=stage.now - DAY + MINUTE
    )
    confirmed = stage.confirmation(grant, "64.90", 9 * MINUTE)
    confirmation_lifecycle.confirm(
        confirmation=confirmed, human=stage.human, actor=stage.alice, now=stage.now - 4 * MINUTE
    )
    looked = {"type": "read", "resource": "calendar/work"}
    stage.decision(grant, 31 * MINUTE, kinds.DECISION_ALLOWED, "success", action=looked)
    stage.decision(grant, 30 * MINUTE, kinds.DECISION_ALLOWED, "success")
    for ago, error, reason in (
        (26 * MINUTE, "insufficient_scope", "no_capability"),
        (22 * MINUTE, "envelope_exceeded", "budget"),
        (2 * MINUTE, "step_up_required", "confirm_above"),
    ):
        stage.decision(grant, ago, kinds.DECISION_DENIED, "denied", (error, reason))
    pending = stage.confirmation(grant, "80.00", 2 * MINUTE)
    rows: dict[str, Confirmation] = {
        "expired": expired,
        "denied": denied,
        "confirmed": confirmed,
        "pending": pending,
    }
    stage.paths |= {
        f"confirmation-{name}": f"/confirmations/{row.pk}/" for name, row in rows.items()
    }


def agents(stage: Stage) -> dict[str, Any]:
    """The user's agents, oldest first; one in each state."""
    return {
        "active": stage.agent(
            "Research Assistant",
            "Reads your calendar, gathers material and pays small invoices.",
            12 * DAY,
        ),
        "revoked": stage.agent("Old Scraper", "", 11 * DAY),
        "suspended": stage.agent("Newsletter Helper", "Drafts the monthly letter.", 10 * DAY),
    }


def set_up(email: str) -> dict[str, str]:
    from audit.services import seal_audit
    from registry.services import agents as services

    stage = Stage(email)
    calendar = stage.service_provider("Nordwind Calendar", "https://calendar.nordwind.example")
    files = stage.service_provider("Harbour Files", "https://files.harbour.example/api")
    pay = stage.service_provider("Acme Payments", "https://pay.acme.example")
    cast = agents(stage)
    decided_grants(stage, cast["active"], calendar, files)
    stage.approved(
        cast["active"], calendar, 3 * DAY, [READ, {"type": "write", "resource": "calendar/work"}]
    )
    spending(stage, cast["active"], pay)
    for name in ("revoked", "suspended"):
        stage.approved(
            cast[name], files, 3 * DAY, [MANY[1]], envelope={"max_requests_per_minute": 5}
        )
    services.revoke_agent(agent=cast["revoked"], actor=stage.alice, now=stage.now - 2 * DAY)
    services.suspend_agent(agent=cast["suspended"], actor=stage.alice, now=stage.now - 5 * HOUR)
    new = stage.agent("Trip Planner", "Looks for trains that fit your meetings.", 3 * MINUTE)
    rows = {
        "pending": stage.request(
            new, calendar, 2 * MINUTE, [READ], reason="To see when you are free.", days=7
        ),
        "many": stage.request(
            cast["active"],
            pay,
            12 * MINUTE,
            MANY,
            envelope=MANY_LIMITS,
            reason="You asked me to close the quarter: I collect the reports, book the review "
            "meetings, pay the "
            "three open invoices and clear the scratch folder afterwards.",
        ),
        "changed": stage.request(new, files, MINUTE, [MANY[1]]),
        "to-approve": stage.request(
            new, pay, MINUTE, [PAY], envelope=SPENDING, reason="For the tickets."
        ),
        "to-deny": stage.request(new, files, MINUTE, [MANY[5]]),
    }
    disguised = stage.agent("Acme Payrnents", "Settles what you owe at Acme.", 2 * HOUR)
    rows["look-alike"] = stage.request(disguised, pay, MINUTE, [PAY], envelope=SPENDING)
    stage.paths |= {name: f"/approvals/{grant.pk}/" for name, grant in rows.items()}
    stage.paths |= {f"agent-{name}": f"/agents/{agent.pk}/" for name, agent in cast.items()}
    stopped = [cast["suspended"].pk, cast["active"].pk]
    held = stage.agent("Held Helper", "Waits for an administrator.", 2 * HOUR)
    services.suspend_agent(agent=held, actor=stage.alice, now=stage.now, by_admin=True)
    stage.paths |= {
        "resume-agent": f"/agents/{stopped[0]}/resume/",
        "resume-grant": f"{stage.paths['suspended']}resume/",
        "resume-row": f"/resume/agent/{held.pk}/",
        "resume-list": f"/resume/agent/?id={stopped[0]}&id={stopped[1]}",
        "denial": f"/denials/{rows['pending'].pk}/",
    }
    stage.paths |= {
        "agent-new": f"/agents/{new.pk}/",
        "agent-look-alike": f"/agents/{disguised.pk}/",
    }
    reporter = ("Expense Reporter", "Files your receipts each Friday.")
    for name, called, ago in (
        ("claim", reporter, 4 * MINUTE),
        ("claim-expired", reporter, 2 * HOUR),
        ("claim-look-alike", ("Аgеnt Аuth", "Keeps your account safe."), 5 * MINUTE),
    ):
        from registry.tests.cast import claim_link

        unclaimed = stage.agent(*called, ago, owned=False)
        url, code = claim_link(unclaimed)
        stage.paths |= {name: urlsplit(url).path, f"{name}-code": code}
    endings(stage, cast["active"], cast["suspended"])
    channels(stage)
    seal_audit(now=stage.now)
    return stage.paths


def endings(stage: Stage, *agents: Any) -> None:
    """Things about to end: one agent, several, another user, and every key, one of them retired."""
    from kms.models import Key
    from kms.services import ensure_key, promote_due_keys, rotate_key
    from registry.models import Human

    for purpose in Key.Purpose.values:
        ensure_key(purpose=purpose, actor=stage.system, now=stage.now)
    rotate_key(purpose=Key.Purpose.RECEIPT, actor=stage.system, now=stage.now)
    Key.objects.filter(state=Key.State.NEXT).update(active_from=stage.now)
    promote_due_keys(now=stage.now)
    chosen = {
        "agent": [agent.pk for agent in agents],
        "human": Human.objects.exclude(pk=stage.human.pk).values_list("pk", flat=True)[:1],
        "key": Key.objects.order_by("pk").values_list("pk", flat=True),
    }
    stage.paths |= {
        f"ending-{kind}": f"/endings/{kind}/?{'&'.join(f'id={pk}' for pk in rows)}"
        for kind, rows in chosen.items()
    }


def channels(stage: Stage) -> None:
    """Two browsers and a chat room; one of the browsers got a message."""
    from approvals.models import NotificationChannel
    from approvals.tests.notifying import by_chat_room
    from approvals.tests.push_service import SubscribedBrowser, by_push
    from approvals.tests.webhook_receiver import Receiver

    names = {"Firefox on Windows": 20 * DAY, "Chrome on Android": 3 * DAY}
    for port, (name, ago) in enumerate(names.items(), 1):
        row = by_push(stage.human, stage.now - ago, SubscribedBrowser(Receiver(port=port)))
        NotificationChannel.objects.filter(pk=row.pk).update(
            name=name, last_sent_at=stage.now - HOUR if port == 1 else None
        )
    by_chat_room(stage.human, stage.now, "https://hooks.slack.example/services/T0", "slack")


def withdraw(grant_id: str) -> dict[str, str]:
    """The agent withdraws its request while the approval page is open."""
    from audit.services import Actor
    from registry.models import Grant
    from registry.services.grant_requests import withdraw_grant

    grant = Grant.objects.get(pk=grant_id)
    withdraw_grant(grant=grant, actor=Actor("agent", str(grant.agent_id)), now=datetime.now(UTC))
    return {}


ACTS = {"set_up": set_up, "withdraw": withdraw}


def done(asked: dict[str, list[str]]) -> Any:
    """What one line asks for: a scene, or a management command that prints JSON."""
    from django.core.management import call_command

    if "manage" in asked:
        told = io.StringIO()
        call_command(*asked["manage"], stdout=told)
        return json.loads(told.getvalue() or "null")
    what, argument = asked["stage"]
    acts = dict(ACTS)
    for each in ("approvers", "catalogue", "console", "hostile", "log", "recovery", "restore"):
        acts |= import_module(f"tests.browser.{each}_stage").ACTS
    return acts[what](argument)


if __name__ == "__main__":
    django.setup()
    for line in sys.stdin:
        try:
            answer = {"done": done(json.loads(line))}
        except Exception:  # noqa: BLE001 — the test shows it
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), flush=True)
