"""The campaign over HTTP: no mutant is accepted, none causes a 500, and none changes a row."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from django.utils import timezone

from agentauth.http_errors import STATUSES
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.tests.cast import ORIGIN, browser
from registry.tests.cast import READ_CALENDAR, TESTER
from tests.campaign.grammar import break_capabilities, break_envelope, break_verify
from tests.campaign.kinds import MANIFEST_RULES, PROOF_RULES, TOKEN_RULES
from tests.campaign.mutants import broken_json, changed_bytes, confused
from tests.campaign.passkeys import broken_assertion, broken_registration, packed, unsigned
from tests.campaign.signed import Original, broken_and_signed, unsigned_mutant
from tests.campaign.stage import NEWCOMER, WHEN, Stage, body_of, newcomers_manifest
from tests.endpoints import writing
from tests.rows import rows
from tests.vectors.generate import AGENT

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

CAMPAIGN = os.environ.get("CAMPAIGN") == "1"
COUNT = 4_000 if CAMPAIGN else 150
PAGE = Path(__file__).resolve().parents[2] / "docs/protocol.md"
DOCUMENTED = set(re.findall(r"`([a-z_]+)`", PAGE.read_text()))


@pytest.fixture
def stage(db: None, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(timezone, "now", lambda: WHEN)
    return Stage()


def mutated(random: Random, original: Original, rules: Any) -> tuple[str, Any]:
    signed_again = random.random() < 0.5
    mutant = (
        broken_and_signed(random, original, rules)
        if signed_again
        else unsigned_mutant(random, original)
    )
    return mutant.rule, mutant.value


def header_of(value: str) -> str | None:
    """The value as a server could receive it; what no header line can carry is not sent at all."""
    sent = value.encode("utf-8", "surrogatepass").decode("latin-1")
    return None if re.search(r"[\r\n\0]", sent) else sent


def agents_call(
    stage: Stage, path: str, body: dict[str, Any], key: Any = AGENT
) -> Callable[[Random], tuple[str, Any]]:
    """A call with a broken proof, a body the proof does not cover, or a body that is no object."""

    def attack(random: Random) -> tuple[str, Any]:
        way, data = random.random(), body_of(body)
        if way < 0.2:
            changed = changed_bytes(random, data)
            return "body changed after signing", stage.send(
                path, changed, proof=stage.proof(path, data, key=key)
            )
        if way < 0.3:
            rule, data = broken_json(random, body)
            return f"body, {rule}", stage.send(path, data, proof=stage.proof(path, data, key=key))
        others = [stage.proof(path, data, key=key) for _ in range(2)]
        rule, proof = mutated(
            random, Original(stage.proof(path, data, key=key), key, others), PROOF_RULES
        )
        return f"proof, {rule}", stage.send(path, data, proof=header_of(proof))

    return attack


def tokens(stage: Stage) -> Callable[[Random], tuple[str, Any]]:
    return agents_call(stage, "/v1/tokens", {"grant_id": str(stage.grant.pk)})


def agents(stage: Stage) -> Callable[[Random], tuple[str, Any]]:
    good = newcomers_manifest()
    call = agents_call(stage, "/v1/agents", {"manifest": good.compact}, NEWCOMER)

    def attack(random: Random) -> tuple[str, Any]:
        if random.random() < 0.5:
            return call(random)
        rule, manifest = mutated(random, good, MANIFEST_RULES)
        data = body_of({"manifest": manifest})
        return f"manifest, {rule}", stage.send(
            "/v1/agents", data, proof=stage.proof("/v1/agents", data, key=NEWCOMER)
        )

    return attack


def grants(stage: Stage) -> Callable[[Random], tuple[str, Any]]:
    good = {
        "service_provider": stage.provider.slug,
        "capabilities": [READ_CALENDAR],
        "envelope": {"max_uses": 3},
        "reason": "x",
    }
    call = agents_call(stage, "/v1/grants", good)

    def attack(random: Random) -> tuple[str, Any]:
        way = random.random()
        if way < 0.3:
            return call(random)
        if way < 0.6:
            changed: Any = {"capabilities": break_capabilities(random, [READ_CALENDAR])}
        elif way < 0.8:
            changed = {"envelope": break_envelope(random, _envelope())}
        else:
            name = random.choice(("service_provider", "capabilities", "reason", "status"))
            changed = {name: confused(random, good.get(name, "x"))}
        data = body_of(good | changed)
        return f"members, {next(iter(changed))}", stage.send(
            "/v1/grants", data, proof=stage.proof("/v1/grants", data)
        )

    return attack


def _envelope() -> Any:
    from tests.campaign.grammar import ENVELOPE

    return ENVELOPE


def verify(stage: Stage) -> Callable[[Random], tuple[str, Any]]:
    def attack(random: Random) -> tuple[str, Any]:
        good, way = stage.question(), random.random()
        if way < 0.4:
            rule, token = mutated(random, stage.token, TOKEN_RULES)
            return f"token, {rule}", stage.verify(body_of(good | {"token": token}))
        if way < 0.8:
            others = [stage.question()["proof"] for _ in range(2)]
            rule, proof = mutated(random, Original(good["proof"], AGENT, others), PROOF_RULES)
            return f"proof, {rule}", stage.verify(body_of(good | {"proof": proof}))
        if way < 0.9:
            rule, data = broken_json(random, good)
            return f"body, {rule}", stage.verify(data)
        return "members", stage.verify(body_of(break_verify(random, good)))

    return attack


def signing_in(stage: Stage) -> Callable[[Random], tuple[str, Any]]:
    person, client = stage.person, browser()

    def post(path: str, body: object) -> Any:
        return client.post(path, body_of(body), content_type="application/json")

    def attack(random: Random) -> tuple[str, Any]:
        options = post("/sign-in/options", {}).json()["publicKey"]
        return _answered(
            random,
            person.device,
            options,
            lambda credential: post("/sign-in/finish", {"credential": credential}),
        )

    return attack


def approving(stage: Stage) -> Callable[[Random], tuple[str, Any]]:
    drawn = stage.person.drawn(stage.waiting)

    def attack(random: Random) -> tuple[str, Any]:
        options = stage.person.statement(stage.waiting, drawn=drawn).json()["publicKey"]
        path = f"/approvals/{stage.waiting.pk}/decide"
        return _answered(
            random,
            stage.person.device,
            options,
            lambda credential: stage.person.post(path, {"credential": credential}),
        )

    return attack


def _answered(
    random: Random, device: Any, options: Any, send: Callable[[Any], Any]
) -> tuple[str, Any]:
    """The passkey, browser or an attacker breaks the ceremony; the stored counter stays."""
    count = device.sign_count
    answer = device.assertion(options)
    if random.random() < 0.5:
        mutant = unsigned(
            random, answer, ("clientDataJSON", "authenticatorData", "signature"), [answer]
        )
    else:
        mutant = broken_assertion(random, device, options, stored=count)
    device.sign_count = count
    return mutant.rule, send(mutant.value)


def setting_up(stage: Stage) -> Callable[[Random], tuple[str, Any]]:
    link = create_setup_link(email="new@example.org", actor=TESTER, now=WHEN).url.removeprefix(
        ORIGIN
    )
    client, device = browser(), type(stage.person.device)()

    def attack(random: Random) -> tuple[str, Any]:
        asked = client.post(
            f"{link}options", body_of({"name": "New", "email": ""}), content_type="application/json"
        )
        options = asked.json()["publicKey"]
        if random.random() < 0.5:
            answer = packed(device, options)
            mutant = unsigned(random, answer, ("clientDataJSON", "attestationObject"), [answer])
        else:
            mutant = broken_registration(random, device, options)
        finish = client.post(
            f"{link}finish", body_of({"credential": mutant.value}), content_type="application/json"
        )
        return mutant.rule, finish

    return attack


# By the names of tests/endpoints.py.
ATTACKED = {
    "POST v1/tokens": tokens,
    "POST v1/agents": agents,
    "POST v1/grants": grants,
    "POST v1/verify": verify,
    "POST sign-in/finish": signing_in,
    "POST approvals/<uuid:grant_id>/decide": approving,
    "POST setup/<str:code>/finish": setting_up,
}


def refused(answer: Any) -> str:
    """The code of a refusal that keeps the rules U1, U2 and U5; anything else fails here."""
    assert len(answer.content) <= 1024
    assert "no-store" in answer["Cache-Control"]
    body = json.loads(answer.content)
    code = str(body["error"])
    assert body["error_description"]
    assert code in DOCUMENTED
    if answer.status_code == 200:
        assert body["valid"] is False
    else:
        # A bad proof may also be answered as a bad request, 400.
        assert answer.status_code in {STATUSES[code], 400}
        assert 400 <= answer.status_code < 500
    return code


def test_each_endpoint_that_is_attacked_exists() -> None:
    assert set(ATTACKED) <= set(writing())


@pytest.mark.long
@pytest.mark.parametrize("name", ATTACKED)
def test_DN_21_no_mutant_passes_an_endpoint(
    name: str, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    attack, found = ATTACKED[name](stage), Counter[str]()
    before = rows()
    for seed in range(COUNT):
        rule, answer = attack(Random(seed))
        try:
            found[refused(answer)] += 1
        except (AssertionError, KeyError, ValueError) as error:
            pytest.fail(
                f"{name} seed {seed} {rule}: {answer.status_code} {answer.content[:300]!r} {error}"
            )
    assert rows() == before
    with capsys.disabled():
        print(f"\n{name}: {found.total():,} refused, 0 accepted: {dict(found.most_common())}")


def test_what_the_mutants_are_made_from_is_accepted(stage: Stage) -> None:
    answers = list(_good(stage))
    assert [answer.status_code for answer in answers] == [201, 201, 201, 200, 200, 200, 200]
    assert answers[3].json()["valid"] is True


def _good(stage: Stage) -> Iterator[Any]:
    grant = {
        "service_provider": stage.provider.slug,
        "capabilities": [READ_CALENDAR],
        "envelope": {"max_uses": 3},
    }
    for path, body, key in (
        ("/v1/tokens", {"grant_id": str(stage.grant.pk)}, AGENT),
        ("/v1/agents", {"manifest": newcomers_manifest().compact}, NEWCOMER),
        ("/v1/grants", grant, AGENT),
    ):
        data = body_of(body)
        yield stage.send(path, data, proof=stage.proof(path, data, key=key))
    yield stage.verify(body_of(stage.question()))
    yield stage.person.sign_in(browser())
    yield stage.person.approve(stage.waiting)
    link = create_setup_link(email="new@example.org", actor=TESTER, now=WHEN).url
    yield type(stage.person)().set_up(link, name="New", email="")
