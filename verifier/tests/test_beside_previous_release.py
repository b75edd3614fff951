"""The previous release and this one share rows and streams; each counts what the other wrote."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from redis import Redis

from audit.models import Event
from audit.tests.event_openings import opened
from kms.seal_backfill import unsealed_rows
from registry.services.enrolment_codes import create_enrolment_code
from registry.tests.cast import TESTER, AgentClient
from tests import endpoint_modes, previous_release, redis_servers
from verifier.models import GrantLedger
from verifier.tests.scene import LOOK, PAY, READ, Scene, key, pay, scene
from verifier.tests.streams import Verifier, assert_whole, logged_decisions, losses
from verifier.tests.test_counters_outlive import asked_again, budget, left
from verifier.tests.test_two_grants import second, verdict

pytestmark = [pytest.mark.postgres, pytest.mark.history, pytest.mark.django_db(transaction=True)]

# Answers the requests on stdin in order. Imports only modules of the previous release.
ASKS = """
import json, sys
import django
django.setup()
from django.utils import timezone
from audit.services import Actor
from registry.models import ServiceProvider
from verifier.requests import parse_verify_request
from verifier.services.rollback_detection import HISTORY_COMPARISON
from verifier.services.web_verification import verify
HISTORY_COMPARISON.holds = lambda _row: True
told = json.load(sys.stdin)
provider = ServiceProvider.objects.get(pk=told["provider"])
actor = Actor("service_provider", str(provider.pk))
print(json.dumps([
    dict(
        verify(
            service_provider=provider, request=parse_verify_request(each), actor=actor,
            now=timezone.now(),
        ).body
    )
    for each in told["questions"]
]))
"""


# Drains Redis with the previous release's outbox and prints the number of events.
DRAINS = """
import json, sys
import django
django.setup()
from django.utils import timezone
from verifier.services.outbox_drain import drain_redis
json.load(sys.stdin)
print(json.dumps([drain_redis(now=timezone.now())]))
"""


# Claims an agent and makes an enrolment code with the previous release's services; prints the code,
# and which agents it accepts. Then it accepts the code of this release.
CLAIMS = """
import json, sys
import django
django.setup()
from django.utils import timezone
from audit.services import Actor
from registry.models import Agent, Human
from registry.services.agent_claims import claim_agent
from registry.services.enrolment_codes import create_enrolment_code, find_enrolment_code
told, now, actor = json.load(sys.stdin), timezone.now(), Actor("system", "test")
human = Human.objects.get(pk=told["human"])
if told["agent"]:
    claim_agent(agent=Agent.objects.get(pk=told["agent"]), human=human, actor=actor, now=now)
if told["code"]:
    find_enrolment_code(told["code"], now=now)
_, code = create_enrolment_code(human=human, actor=actor, now=now)
print(json.dumps([code, [row.is_sealed() for row in Agent.objects.all()]]))
"""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return previous_release.unpack(tmp_path_factory.mktemp("earlier"))


def paid_there(root: Path, *payments: tuple[Scene, str]) -> list[Any]:
    """The previous release's answers to these payments, from its own process on this database."""
    told = {
        "provider": str(payments[0][0].provider.pk),
        "questions": [place.body(pay(value), idempotency_key=key()) for place, value in payments],
    }
    return run_there(root, ASKS, told)


def run_there(root: Path, script: str, told: object, **more: str) -> list[Any]:
    """Run a script of the previous release on this database and return what it printed.

    `more` extends its environment.
    """
    at = connection.settings_dict
    url = f"postgres://{at['USER']}:{at['PASSWORD']}@{at['HOST']}:{at['PORT']}/{at['NAME']}"
    environment = {
        "PATH": os.environ["PATH"],
        "DJANGO_SETTINGS_MODULE": "agentauth.settings",
        "DATABASE_URL": url,
        "PUBLIC_URL": settings.PUBLIC_URL,
        "SECRET_KEY": settings.SECRET_KEY,
        "VAR_DIR": str(settings.VAR_DIR),
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env=environment,
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


@pytest.mark.redis
def test_the_version_before_takes_over_decisions_that_carry_a_mac(
    earlier: Path, redis: Redis, redis_server: redis_servers.Server, now: datetime
) -> None:
    one = Verifier(redis, scene(READ))
    written = [one.write(), one.write("r")]
    assert run_there(earlier, DRAINS, None, REDIS_URL=redis_server.registry_url) == [2]
    assert logged_decisions() == written
    assert losses() == []
    assert GrantLedger.objects.get().uses == 1
    assert_whole(now)


@pytest.mark.redis
def test_the_version_before_records_arguments_where_they_can_be_erased(
    earlier: Path,
    redis_server: redis_servers.Server,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", redis_server.registry_url)
    place = scene(READ)
    with endpoint_modes.use_redis_replay_cache(redis_server.registry_url):
        plain = place.ask(LOOK)
        named = place.ask(LOOK | {"arguments": {"payee": "ACME"}})
        token = place.token()
        proof = place.proof(token, method="GET")
        place.ask(LOOK | {"arguments": {"payee": "ACME"}}, token=token, proof=proof)
    assert run_there(earlier, DRAINS, None, REDIS_URL=redis_server.registry_url) == [3]
    events = Event.objects.filter(kind__startswith="verifier.decision.").order_by("id")
    assert [str(event.pk) for event in events[:2]] == [plain["decision_id"], named["decision_id"]]
    for event in events[1:]:
        assert opened(event)["details"]["arguments"] == {"payee": "ACME"}
    assert "ACME" not in json.dumps([event.data for event in events])
    assert losses() == []
    assert GrantLedger.objects.get().uses == 2
    assert_whole(now)


def test_what_the_version_before_spent_counts_here_and_nothing_twice(earlier: Path) -> None:
    month = budget("10.00", "month")
    place = scene(PAY, budgets=[month])
    [there] = paid_there(earlier, (place, "2.00"))
    assert left(there) == "8.00"
    # The same grant in both releases, then another one whose budget overlaps.
    assert left(place.pay("1.00")) == "7.00"
    other = replace(place, grant=second(place, PAY, budgets=[month]))
    assert left(other.pay("2.00")) == "5.00"
    assert [left(each) for each in paid_there(earlier, (other, "1.00"), (place, "1.00"))] == [
        "4.00",
        "3.00",
    ]
    assert left(other.pay("1.00")) == "2.00"
    # A new grant after the revocation starts with the spent budget in both releases.
    again = asked_again(other, PAY, budgets=[month])
    assert left(again.pay("1.00")) == "1.00"
    [there] = paid_there(earlier, (again, "1.00"))
    assert left(there) == "0.00"
    assert verdict(again.pay("0.01")) == "budget"
    rows = GrantLedger.objects.values_list("grant_id", "uses", "spent__EUR/month/UTC__1")
    assert {grant: (uses, spent) for grant, uses, spent in rows} == {
        place.grant.pk: (3, 400),
        other.grant.pk: (3, 400),
        again.grant.pk: (2, 200),
    }


def test_the_version_before_and_this_one_accept_each_others_agents(
    earlier: Path, now: datetime
) -> None:
    place, claimed = scene(READ), AgentClient()
    assert claimed.register().status_code == 201
    _, code = create_enrolment_code(human=place.human, actor=TESTER, now=now)
    told = {"human": str(place.human.pk), "agent": str(claimed.agent().pk), "code": code}
    theirs, accepted = run_there(earlier, CLAIMS, told)
    assert accepted == [True, True]
    assert claimed.call("GET", "/v1/agents/me").json()["status"] == "active"
    assert AgentClient().register(theirs).status_code == 201
    assert list(unsealed_rows()) == []
    assert run_there(earlier, CLAIMS, told | {"agent": "", "code": ""})[1] == [True] * 3
