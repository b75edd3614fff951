"""A user whose free texts are unique words, and where those words are stored afterwards."""

import base64
import gzip
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from django.db import connection
from pyarrow import parquet

from approvals.services.setup_and_sign_in import create_setup_link
from approvals.tests.cast import Person, browser
from kms.services import ensure_key
from registry.models import Grant, ServiceProvider
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, AgentClient, claim_link
from verifier.tests.scene import Scene

_MARK = "zqplanted"
_WORD = re.compile(f"{_MARK}[a-z]+")


def word(name: str) -> str:
    """The word typed into this input: valid in a path, a name, a key and an address."""
    return _MARK + name.replace("_", "")


def money(value: str) -> dict[str, str]:
    return {"value": value, "currency": "EUR"}


def limited(name: str) -> dict[str, Any]:
    """Capabilities with a word in each text that a capability may have."""
    return {
        "read": {
            "type": "read",
            "resource": f"calendar/{word(name + '_resource')}",
            "constraints": {
                word(name + "_argument"): {"in": [f"{word(name + '_value')}@example.org"]}
            },
        },
        "pay": {"type": "transact", "resource": "payments", "max_amount": money("500.00")},
        "custom": {
            "type": "custom",
            # The service provider's words.
            "namespace": "vendor.acts",
            "name": "merge",
            "resource": f"records/{word(name + '_custom')}",
        },
    }


def capabilities(name: str) -> list[dict[str, Any]]:
    return [*limited(name).values()]


def own_act(name: str) -> dict[str, Any]:
    """A capability no service provider knows; a manifest may name it."""
    return {
        "type": "custom",
        "namespace": word(name + "_namespace"),
        "name": word(name + "_name"),
        "resource": word(name + "_own"),
    }


@dataclass
class Planted:
    """The user, an administrator, their agents, and how a service provider names them."""

    now: datetime
    person: Person = field(
        default_factory=lambda: Person(client=browser(**{"User-Agent": word("agent_of_user")}))
    )
    agents: list[AgentClient] = field(default_factory=list)

    def come_in(self) -> None:
        email = f"{word('email')}@example.org"
        link = create_setup_link(email=email, actor=TESTER, now=self.now)
        done = self.person.set_up(link.url, name=f"Zoe {word('human')}", email=email)
        assert done.status_code == 200, done.content

    def register(self, name: str, *, days: int = 60) -> AgentClient:
        """An agent that registers unclaimed and is claimed on the page."""
        client = AgentClient()
        manifest = client.manifest(
            name=word(name),
            description=word(name + "_description"),
            days=days,
            model_origin=f"{word(name + '_origin')}.example",
            capabilities=[*capabilities(name), own_act(name)],
        )
        assert client.register(manifest=manifest, key=word(name + "_key")).status_code == 201
        self.agents.append(client)
        return client

    def claim(self, client: AgentClient) -> None:
        url, code = claim_link(client.agent())
        path = url.removeprefix("http://localhost:8000")
        options = self.person.press_on(path, code=code).json()["publicKey"]
        done = self.person.post(
            f"{path}decide", {"credential": self.person.device.assertion(options)}
        )
        assert done.status_code == 200, done.content

    def request(
        self, client: AgentClient, at: ServiceProvider, name: str, reason: str, **more: Any
    ) -> Grant:
        body = {"capabilities": capabilities(name), "reason": word(reason)} | more
        asked = client.ask(at, key=word(reason + "_key"), **body)
        assert asked.status_code in {200, 201}, asked.content
        return Grant.objects.select_related("agent__human", "service_provider").get(
            pk=asked.json()["grant_id"]
        )


def provider_of(name: str, port: int, now: datetime) -> tuple[ServiceProvider, str]:
    allowed = ("read:calendar", "transact:payments", "custom:vendor.acts.merge:records")
    return create_service_provider(
        name=name, audience=f"http://127.0.0.1:{port}", allowed=allowed, actor=TESTER, now=now
    )


def live(planted: Planted, admin: Person) -> Scene:
    """Put words into all acts: register, claim, request, approve, deny, use, confirm, change."""
    now = planted.now
    for purpose in ("token", "receipt"):
        ensure_key(purpose=purpose, actor=TESTER, now=now)
    planted.come_in()
    client = planted.register("robot")
    provider, secret = provider_of("Acme", 8001, now)
    unclaimed = planted.request(client, provider, "robot", "before_claim")
    planted.claim(client)
    planted.person.deny(unclaimed, word("denial"))
    beta, _ = provider_of("Beta", 8002, now)
    admin.deny_as_admin(
        planted.request(client, beta, "robot", "to_the_admin"), word("denial_of_admin")
    )
    gamma, secret = provider_of("Gamma", 8003, now)
    limits = {"confirm_above": money("50.00")}
    grant = planted.request(client, gamma, "robot", "purpose", envelope=limits)
    decided = planted.person.approve(grant)
    assert decided.status_code == 200, decided.content
    grant.refresh_from_db()
    place = Scene(grant, client.agent(), planted.person.human, gamma, secret, client.signer, "")
    use(planted, place, client)
    changes: dict[str, Any] = {
        "name": word("renamed"),
        "description": word("described"),
        "model_origin": f"{word('moved')}.example",
    }
    # Beyond the grant, which then waits for a signature.
    changed = client.replace(
        capabilities=[*capabilities("changed"), own_act("changed")],
        key=word("replace_key"),
        **changes,
    )
    assert changed.status_code == 200, changed.content
    delta, _ = provider_of("Delta", 8004, now)
    planted.request(client, delta, "changed", "waiting")
    return place


def use(planted: Planted, place: Scene, client: AgentClient) -> None:
    token = client.call(
        "POST", "/v1/tokens", {"grant_id": str(place.grant.pk)}, key=word("token_key")
    )
    assert token.status_code == 201, token.content
    shown = token.json()["access_token"]
    read = {
        "type": "read",
        "resource": f"calendar/{word('robot_resource')}/{word('read')}",
        "arguments": {word("robot_argument"): f"{word('robot_value')}@example.org"},
    }

    def ask(action: dict[str, Any], name: str) -> dict[str, Any]:
        return place.ask(action, token=shown, proof=place.proof(shown), idempotency_key=word(name))

    assert ask(read, "operation")["valid"]
    assert ask(read, "operation").get("repeated")
    assert not ask(read | {"resource": f"elsewhere/{word('refused')}"}, "refused_operation")[
        "valid"
    ]
    assert not ask(read | {"arguments": {word("other"): word("argument")}}, "broken")["valid"]
    custom = {
        name: limited("robot")["custom"][name] for name in ("type", "namespace", "name", "resource")
    }
    assert ask(custom | {"arguments": {word("custom_argument"): word("custom_value")}}, "custom")[
        "valid"
    ]
    assert not ask(own_act("unknown"), "unknown")["valid"]
    pay = {
        "type": "transact",
        "resource": f"payments/{word('paid')}",
        "amount": money("70.00"),
        "arguments": {word("to"): f"{word('payee')}@example.org"},
    }
    asked = ask(pay, "payment")
    path = f"/confirmations/{asked['confirmation_id']}/"
    options = planted.person.press_on(path, decision="confirm").json()["publicKey"]
    done = planted.person.post(
        f"{path}decide", {"credential": planted.person.device.assertion(options)}
    )
    assert done.status_code == 200, done.content
    assert ask(pay, "payment")["valid"]
    waits = pay | {"resource": f"payments/{word('unpaid')}"}
    assert ask(waits, "unpaid_payment")["reason"] == "confirm_above"


def found(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def in_database() -> dict[str, set[str]]:
    """`table.column` → every planted word in it, also as bytes or hex."""
    hits: dict[str, set[str]] = {}
    with connection.cursor() as cursor:
        # On PostgreSQL this includes partitions.
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f'SELECT * FROM "{table}"')  # noqa: S608 — our own tables
            names = [column[0] for column in cursor.description]
            for row in cursor.fetchall():
                for name, value in zip(names, row, strict=True):
                    if words := found(_text(value)):
                        hits.setdefault(f"{table}.{name}", set()).update(words)
    return hits


def _text(value: object) -> str:
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode("latin-1") + _decoded(bytes(value).decode("latin-1"))
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text + _decoded(text)


def _decoded(text: str) -> str:
    """Its base64url content, as in a JWS: each part at each of its four alignments."""
    parts = re.findall(r"[A-Za-z0-9_-]{16,}", text)
    return "".join(
        base64.urlsafe_b64decode(cut + "=" * (-len(cut) % 4)).decode("latin-1")
        for part in parts
        for start in range(4)
        if (cut := part[start:]) and len(cut) % 4 != 1
    )


def in_files(folder: Path) -> dict[str, set[str]]:
    """Kind of file → every planted word in the store."""
    hits: dict[str, set[str]] = {}
    for path in folder.rglob("*"):
        if path.is_file() and (words := found(_of_file(path))):
            hits.setdefault(path.suffix or path.parent.name, set()).update(words)
    return hits


def _of_file(path: Path) -> str:
    if path.suffix == ".gz":
        return _text(gzip.decompress(path.read_bytes()))
    if path.suffix == ".parquet":
        return _text(json.dumps(parquet.read_table(path).to_pylist(), default=str))
    return _text(path.read_bytes())


def listed(hits: dict[str, set[str]]) -> str:
    return "\n".join(
        f"{place}: {', '.join(sorted(words))}" for place, words in sorted(hits.items())
    )
