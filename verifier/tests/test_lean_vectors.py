"""Every vector that can stand in a request, and mutants of good requests: the view and the lean endpoint say the same."""

import json
import re
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest
from django.conf import settings
from django.utils import timezone

from kms.services import signer
from registry.models import Grant, ServiceProvider, Token
from tests import receipts, through
from tests.campaign.grammar import break_action, break_verify
from tests.campaign.kinds import PROOF_RULES, TOKEN_RULES
from tests.campaign.mutants import broken_json, changed_bytes, unb64
from tests.campaign.signed import Original
from tests.campaign.stage import body_of
from tests.campaign.test_over_http import CAMPAIGN, mutated
from tests.equal import BATCH, INTROSPECT, NOW, Ask, Both, ask
from tests.equal import both as both  # noqa: PLC0414 — a fixture
from tests.equal import served as served  # noqa: PLC0414 — a fixture
from tests.vectors import adapter
from tests.vectors.asked import NOT_ASKED, Questions, dpop_case
from tests.vectors.generate import OWN
from tests.vectors.shared import files, load
from verifier.services import web
from verifier.tests.scene import LOOK, Scene, scene

pytestmark = [pytest.mark.redis, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

WRITE = {"type": "write", "resource": "calendar"}


def claims_of(token: str) -> Any:
    return json.loads(unb64(token.split(".")[1]))


@pytest.fixture
def registry(both: Both, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """The registry that the own vectors are of: its name, keys, service provider and grant, and the rows of its tokens."""
    doc = load("own_dpop_cases")
    both.clock.move_to(datetime.fromtimestamp(doc["now"], UTC))
    place = scene(WRITE)
    monkeypatch.setattr(settings, "ISSUER", doc["issuer"])
    keys = adapter.issuer_keys(doc["issuer_jwks"])
    for module in (web, through):
        monkeypatch.setattr(module, "token_keys", lambda **_: keys)
    ServiceProvider.objects.filter(pk=place.provider.pk).update(audience=doc["audience"])
    place.provider.refresh_from_db()
    good = [dpop_case(case)["token"] for case in doc["cases"] if case["expect"] == "accept"]
    good += [case["token"] for case in load("own_token_cases")["cases"] if case["expect"] == "accept"]
    place.grant.pk = claims_of(good[0])["grant_id"]
    place.grant.version = claims_of(good[0])["grant_version"]
    place.grant.status = Grant.Status.PENDING
    place.grant.save(force_insert=True)
    Grant.objects.filter(pk=place.grant.pk).update(status=Grant.Status.APPROVED)
    now = timezone.now()
    monkeypatch.setattr(settings, "RP_ID", urlsplit(doc["issuer"]).hostname)
    receipts.sign(Grant.objects.get(pk=place.grant.pk), now=now)
    for jti in {claims_of(token)["jti"] for token in good}:
        Token.objects.create(
            jti=jti,
            grant=Grant.objects.get(pk=place.grant.pk),
            grant_version=place.grant.version,
            jkt=place.agent.jkt,
            claims={},
            issued_at=now,
            expires_at=now + timedelta(minutes=15),
        )
    both.running.forget()
    return place


def in_batches(both: Both, place: Scene, questions: list[Any]) -> None:
    for start in range(0, len(questions), 64):
        both.same(ask(place, {"requests": questions[start : start + 64]}, BATCH))


@pytest.mark.vectors
def test_each_file_of_vectors_is_asked_or_named() -> None:
    names = set(files())
    assert {name for name in names if hasattr(Questions, f"_{name}")} == names - NOT_ASKED.keys()
    assert names >= NOT_ASKED.keys()


@pytest.mark.vectors
def test_proofs_are_the_same(both: Both, registry: Scene) -> None:
    """The good ones come to the end of the pipeline, and once they are spent, they are so at both."""
    cases = load("own_dpop_cases")["cases"]
    rehearsed = [{**dpop_case(case), "action": WRITE, "dry_run": True} for case in cases]
    for question in rehearsed:
        # A private key that was shown is barred once, which is one event.
        both.at_view(ask(registry, question))
    asked = [(case["id"], ask(registry, question)) for case, question in zip(cases, rehearsed, strict=True)]
    answers = both.all_same(asked)
    good = [number for number, case in enumerate(cases) if case["expect"] == "accept"]
    assert [answers[number]["valid"] for number in good] == [True] * len(good)
    in_batches(both, registry, rehearsed)
    yes = [number for number, answer in enumerate(answers) if answer["valid"]]
    spending = [{**question, "dry_run": False} for question in rehearsed]
    for number in yes:
        both.at_view(ask(registry, spending[number]))
    answers = both.all_same(
        (case["id"], ask(registry, each)) for case, each in zip(cases, spending, strict=True)
    )
    assert {answers[number]["reason"] for number in yes} == {"replayed"}


@pytest.mark.vectors
def test_tokens_are_the_same(both: Both, registry: Scene) -> None:
    cases = load("own_token_cases")["cases"]
    for case in cases:
        both.clock.move_to(datetime.fromtimestamp(case.get("now", load("own_token_cases")["now"]), UTC))
        text, proof = case["token"], registry.proof(case["token"])
        question = {"token": text, "proof": proof, "method": "POST", "url": registry.url, "action": WRITE}
        both.all_same([(case["id"], ask(registry, question))])
        in_batches(both, registry, [question])
        told = both.all_same([(case["id"], ask(registry, urlencode({"token": text}).encode(), INTROSPECT))])
        assert told[0]["active"] is (case["expect"] == "accept"), case["id"]


@pytest.mark.vectors
def test_all_other_vectors_are_the_same(both: Both, place: Scene) -> None:
    good = place.body(LOOK, dry_run=True)
    questions = Questions(good, claims_of(good["proof"]), place.signer)
    asked = list(questions.all())
    assert len(asked) > 2_000
    # They are all judged before their home is asked; it only writes down the refusal.
    asked = asked if both.redis or CAMPAIGN else asked[::3]
    for name, question in asked:
        if any(word in name for word in ("own_dpop", "rfc8037", "private", "public")):
            # A private key that was shown is barred once, which is one event.
            both.at_view(ask(place, question))
    both.all_same((name, ask(place, question)) for name, question in asked)
    in_batches(both, place, [question for _, question in asked[::8]])
    texts = {text: name for name, question in asked if isinstance(text := question["token"], str)}
    both.all_same(
        (name, ask(place, urlencode({"token": text}).encode(), INTROSPECT)) for text, name in texts.items()
    )


def test_our_own_vectors_are_the_same(both: Both, place: Scene) -> None:
    own = {name: json.loads((OWN / f"{name}.json").read_text())["cases"] for name in ("proofs", "tokens")}
    both.clock.move_to(datetime.fromtimestamp(own["proofs"][0]["now"], UTC))
    token = place.token()
    questions: list[Any] = [
        {
            "token": case["access_token"] or token,
            "proof": case["proof"],
            "method": case["method"],
            "url": case["url"],
        }
        for case in own["proofs"]
    ]
    for case in own["tokens"]:
        asked = {
            "token": case["token"],
            "proof": place.proof(case["token"]),
            "method": "POST",
            "url": place.url,
        }
        questions += [asked, asked | {"proof": case["token"]}]
    # The whole run of a clone without the shared files: 13 proofs and 10 tokens, these as proofs too.
    assert len(questions) >= 33
    for question in questions:
        both.same(ask(place, question))
    in_batches(both, place, questions)
    for case in own["tokens"]:
        both.same(ask(place, b"token=" + case["token"].encode(), INTROSPECT))


# ---- mutants


class Mutants:
    """What is made of one good request: its bytes, its JSON, and what stands signed in it."""

    def __init__(self, place: Scene, random: Random) -> None:
        # A rehearsal, since some are as good as what they are made from, and each is asked twice.
        self.place, self.random, self.good = place, random, place.body(LOOK, dry_run=True)
        token = self.good["token"]
        self._token = Original(token, signer(purpose="token", now=NOW), [place.token(), place.token()])
        self._proof = Original(self.good["proof"], place.signer, [place.proof(token) for _ in range(2)])

    def _question(self) -> object:
        random, good, way = self.random, self.good, self.random.random()
        if way < 0.3:
            return good | {"token": mutated(random, self._token, TOKEN_RULES)[1]}
        if way < 0.6:
            return good | {"proof": mutated(random, self._proof, PROOF_RULES)[1]}
        if way < 0.7:
            return break_verify(random, good)
        if way < 0.8:
            return good | {"action": break_action(random, LOOK)}
        if way < 0.9:
            return broken_json(random, good)[1]
        return changed_bytes(random, json.dumps(good).encode())

    def ask(self) -> Ask:
        """Most at verify; some in a batch with a good one behind, some at introspection, some with another header line."""
        random, way = self.random, self.random.random()
        question = self._question()
        if way < 0.1 and not isinstance(question, bytes):
            return ask(self.place, body_of({"requests": [question, self.good]}), BATCH)
        if way < 0.2:
            text = mutated(random, self._token, TOKEN_RULES)[1].encode("utf-8", "surrogatepass")
            form = b"token=" + (text if random.random() < 0.5 else quote(text).encode())
            return ask(self.place, form, INTROSPECT)
        made = ask(self.place, body_of(question))
        if way < 0.3:
            # The length is the server's: it hands on as much as it says.
            line = random.choice(
                [at for at, (name, _) in enumerate(made.headers) if name != "content-length"]
            )
            name, value = made.headers[line]
            changed = changed_bytes(random, value.encode()).decode("latin-1")
            # What no server hands on.
            made.headers[line] = name, re.sub(r"[\x00-\x08\x0a-\x1f\x7f]", "", changed).strip()
        return made


def test_mutants_are_the_same(both: Both, place: Scene) -> None:
    """Two thousand in the full campaign."""
    mutants = Mutants(place, Random(20270110))
    assert both.same(ask(place, mutants.good))["valid"]
    asked = [(str(number), mutants.ask()) for number in range(2_000 if CAMPAIGN else 150)]
    both.all_same(asked)
