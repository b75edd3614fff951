"""Our own vectors, and mutants of valid requests: the view and the lean endpoint agree."""

import json
import re
from datetime import UTC, datetime
from random import Random
from typing import Any
from urllib.parse import quote

import pytest

from kms.services import signer
from tests.campaign.grammar import break_action, break_verify
from tests.campaign.kinds import PROOF_RULES, TOKEN_RULES
from tests.campaign.mutants import broken_json, changed_bytes
from tests.campaign.signed import Original
from tests.campaign.stage import body_of
from tests.campaign.test_over_http import CAMPAIGN, mutated
from tests.endpoint_comparison import NOW, Ask, Both, ask
from tests.endpoint_comparison import both as both  # noqa: PLC0414 — a fixture
from tests.endpoint_comparison import served as served  # noqa: PLC0414 — a fixture
from tests.vectors.generate import OWN
from verifier.endpoint_paths import BATCH, INTROSPECT
from verifier.tests.scene import LOOK, Scene

pytestmark = [pytest.mark.redis, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def in_batches(both: Both, place: Scene, questions: list[Any]) -> None:
    for start in range(0, len(questions), 64):
        both.same(ask(place, {"requests": questions[start : start + 64]}, BATCH))


def test_our_own_vectors_are_the_same(both: Both, place: Scene) -> None:
    own = {
        name: json.loads((OWN / f"{name}.json").read_text())["cases"]
        for name in ("proofs", "tokens")
    }
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
    # All vectors of a clone without the shared files: 13 proofs, and 10 tokens that also stand as
    # proofs.
    assert len(questions) >= 33
    for question in questions:
        both.same(ask(place, question))
    in_batches(both, place, questions)
    for case in own["tokens"]:
        both.same(ask(place, b"token=" + case["token"].encode(), INTROSPECT))


# ---- mutants


class Mutants:
    """Mutates a valid request: its bytes, its JSON, and its signed parts."""

    def __init__(self, place: Scene, random: Random) -> None:
        # A dry run, because some mutants stay valid, and each is sent twice.
        self.place, self.random, self.good = place, random, place.body(LOOK, dry_run=True)
        token = self.good["token"]
        self._token = Original(
            token, signer(purpose="token", now=NOW), [place.token(), place.token()]
        )
        self._proof = Original(
            self.good["proof"], place.signer, [place.proof(token) for _ in range(2)]
        )

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
        """Make a mutated request: to verify, in a batch, to introspection, or with a changed line.

        In a batch, a valid request follows it.
        """
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
            # Not the length, since the server passes on exactly that many bytes.
            line = random.choice(
                [at for at, (name, _) in enumerate(made.headers) if name != "content-length"]
            )
            name, value = made.headers[line]
            changed = changed_bytes(random, value.encode()).decode("latin-1")
            # Characters that no server passes on.
            made.headers[line] = name, re.sub(r"[\x00-\x08\x0a-\x1f\x7f]", "", changed).strip()
        return made


@pytest.mark.long
def test_mutants_are_the_same(both: Both, place: Scene) -> None:
    """2,000 mutants in the full campaign."""
    mutants = Mutants(place, Random(20270110))
    assert both.same(ask(place, mutants.good))["valid"]
    asked = [(str(number), mutants.ask()) for number in range(2_000 if CAMPAIGN else 150)]
    both.all_same(asked)
