"""The proofs that every verifier must accept, and those it must refuse, with the file to name."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agentauth.sdk.tests.log_folders import STRANGER, MadeLog, b64, b64u

LOG = MadeLog()
OTHER = MadeLog(seed="other history")
Change = Callable[[str], str]


@dataclass(frozen=True)
class ProofCase:
    """Texts by the option that passes them; `place` is the option of the file to name."""

    name: str
    files: dict[str, str]
    place: str = ""


INCLUSION = {"inclusion": json.dumps(LOG.inclusion(5, 11)), "checkpoint": LOG.note(11)}
EVENT = INCLUSION | {"event": json.dumps(LOG.shown(5))}
BUNDLE = {"bundle": LOG.bundle(5, 11), "event": json.dumps(LOG.shown(5))}
CONSISTENCY = {
    "consistency": json.dumps(LOG.consistency(6, 11)),
    "first": LOG.note(6),
    "second": LOG.note(11),
}


def member(files: dict[str, str], option: str, **changes: Any) -> dict[str, str]:
    """Change members in one file; None removes a member."""
    value = json.loads(files[option]) | changes
    return files | {
        option: json.dumps({name: each for name, each in value.items() if each is not None})
    }


def text(files: dict[str, str], option: str, old: str, new: str) -> dict[str, str]:
    assert old in files[option]
    return files | {option: files[option].replace(old, new, 1)}


def event(**changes: Any) -> dict[str, str]:
    return member(EVENT, "event", **changes)


def opening(**changes: Any) -> dict[str, str]:
    shown = LOG.shown(5)
    return event(openings={"name": shown["openings"]["name"] | changes})


PATH = LOG.inclusion(5, 11)["audit_path"]
GROWTH = LOG.consistency(6, 11)["consistency_path"]
ZERO = b64(bytes(32))
DEEP = "[" * 50_000

GOOD = [
    ProofCase("a leaf", INCLUSION),
    ProofCase("an event", EVENT),
    ProofCase("an event in a bundle", BUNDLE),
    ProofCase("growth", CONSISTENCY),
    ProofCase("no growth",
              {"consistency": json.dumps(LOG.consistency(6, 6)), "first": LOG.note(6),
               "second": LOG.note(6)}),
    ProofCase("an event without number", member(EVENT, "event", leaf_index=None)),
    ProofCase("an event whose person was erased", event(openings={})),
    ProofCase("unknown members", member(INCLUSION, "inclusion", more=1)),
    ProofCase("a bundle with something extra",
              text(BUNDLE, "bundle", "index", "extra AAAA\nindex")),
    ProofCase("JSON over several lines", EVENT | {"event": json.dumps(LOG.shown(5), indent=2)}),
    ProofCase("JSON in ASCII", EVENT | {"event": json.dumps(LOG.shown(5), ensure_ascii=True)}),
    ProofCase("JSON in UTF-8", EVENT | {"event": json.dumps(LOG.shown(5), ensure_ascii=False)}),
]  # fmt: skip

BAD = [
    ProofCase("another leaf", member(INCLUSION, "inclusion", leaf_hash=ZERO), "inclusion"),
    ProofCase("another number", member(INCLUSION, "inclusion", leaf_index=4), "inclusion"),
    ProofCase("a number beyond the tree", member(INCLUSION, "inclusion", leaf_index=11),
              "inclusion"),
    ProofCase("a number below zero", member(INCLUSION, "inclusion", leaf_index=-6), "inclusion"),
    ProofCase("a number in quotes", member(INCLUSION, "inclusion", leaf_index="5"), "inclusion"),
    ProofCase("a number that is true",
              {"inclusion": json.dumps(LOG.inclusion(1, 11) | {"leaf_index": True}),
               "checkpoint": LOG.note(11)},
              "inclusion"),
    ProofCase("a number with a fraction",
              text(INCLUSION, "inclusion", '"leaf_index": 5', '"leaf_index": 5.0'), "inclusion"),
    ProofCase("a number with an exponent",
              text(INCLUSION, "inclusion", '"leaf_index": 5', '"leaf_index": 5e0'), "inclusion"),
    ProofCase("no number", member(INCLUSION, "inclusion", leaf_index=None), "inclusion"),
    ProofCase("a short path", member(INCLUSION, "inclusion", audit_path=PATH[1:]), "inclusion"),
    ProofCase("a long path", member(INCLUSION, "inclusion", audit_path=[*PATH, ZERO]), "inclusion"),
    ProofCase("a path that begins below its leaf",
              member(INCLUSION, "inclusion", audit_path=[ZERO, *PATH]), "inclusion"),
    ProofCase("an endless path", member(INCLUSION, "inclusion", audit_path=[*PATH, *[ZERO] * 64]),
              "inclusion"),
    ProofCase("a path in another order", member(INCLUSION, "inclusion", audit_path=PATH[::-1]),
              "inclusion"),
    ProofCase("a path of text", member(INCLUSION, "inclusion", audit_path=PATH[0]), "inclusion"),
    ProofCase("a path of names", member(INCLUSION, "inclusion", audit_path=dict.fromkeys(PATH, 1)),
              "inclusion"),
    ProofCase("a path of numbers", member(INCLUSION, "inclusion", audit_path=[1, 2]), "inclusion"),
    ProofCase("a short hash",
              member(INCLUSION, "inclusion", audit_path=[b64(bytes(31)), *PATH[1:]]), "inclusion"),
    ProofCase("a hash without padding",
              member(INCLUSION, "inclusion", audit_path=[PATH[0][:-1], *PATH[1:]]), "inclusion"),
    ProofCase("another tree size", member(INCLUSION, "inclusion", tree_size=12), "inclusion"),
    ProofCase("another root", member(INCLUSION, "inclusion", root_hash=ZERO), "inclusion"),
    ProofCase("no root", member(INCLUSION, "inclusion", root_hash=None), "inclusion"),
    ProofCase("a checkpoint of another size", INCLUSION | {"checkpoint": LOG.note(12)},
              "inclusion"),
    ProofCase("a checkpoint of another history", INCLUSION | {"checkpoint": OTHER.note(11)},
              "inclusion"),
    ProofCase("an unsigned checkpoint", INCLUSION | {"checkpoint": LOG.note(11, STRANGER)},
              "checkpoint"),
    ProofCase("a proof out of another log",
              INCLUSION | {"inclusion": json.dumps(OTHER.inclusion(5, 11))}, "inclusion"),
    ProofCase("a member twice", text(INCLUSION, "inclusion", "{", '{"leaf_index": 5, '),
              "inclusion"),
    ProofCase("a list", INCLUSION | {"inclusion": "[]"}, "inclusion"),
    ProofCase("null", INCLUSION | {"inclusion": "null"}, "inclusion"),
    ProofCase("no JSON", INCLUSION | {"inclusion": "{"}, "inclusion"),
    ProofCase("an empty file", INCLUSION | {"inclusion": ""}, "inclusion"),
    ProofCase("brackets", INCLUSION | {"inclusion": DEEP}, "inclusion"),
    ProofCase("a large file", INCLUSION | {"inclusion": json.dumps("x" * (1 << 18))}, "inclusion"),
    ProofCase("a byte order mark", INCLUSION | {"inclusion": "\ufeff" + INCLUSION["inclusion"]},
              "inclusion"),
    ProofCase("another event", INCLUSION | {"event": json.dumps(LOG.shown(6))}, "event"),
    ProofCase("another outcome", event(outcome="denied"), "event"),
    ProofCase("a member more", event(reason="none"), "event"),
    ProofCase("a member less", event(kind=None), "event"),
    ProofCase("another number than the proof's", event(leaf_index=6), "event"),
    ProofCase("an event whose number is true",
              {"inclusion": json.dumps(LOG.inclusion(1, 11)), "checkpoint": LOG.note(11),
               "event": json.dumps(LOG.shown(1) | {"leaf_index": True})},
              "event"),
    ProofCase("a number of an event in quotes", event(leaf_index="5"), "event"),
    ProofCase("a number of an event below zero", event(leaf_index=-1), "event"),
    ProofCase("another salt", event(salt=b64u(bytes(32))), "event"),
    ProofCase("a short salt", event(salt=b64u(bytes(31))), "event"),
    ProofCase("a padded salt", event(salt=LOG.shown(5)["salt"] + "="), "event"),
    ProofCase("no salt", event(salt=None), "event"),
    ProofCase("a salt that is a number", event(salt=1), "event"),
    ProofCase("a name instead of another", opening(value="Jorg"), "event"),
    ProofCase("an opening with another salt", opening(salt=b64u(bytes(32))), "event"),
    ProofCase("an opening without salt", opening(salt=1), "event"),
    ProofCase("an opening that says more", opening(note="proved"), "event"),
    ProofCase("an opening of what is not there",
              event(openings={"address": LOG.shown(5)["openings"]["name"]}), "event"),
    ProofCase("an opening of what is no commitment",
              event(openings={"n": LOG.shown(5)["openings"]["name"]}), "event"),
    ProofCase("a fraction in an event", event(data={"n": 0.5}), "event"),
    ProofCase("a large number in an event", event(data={"n": 2**53}), "event"),
    ProofCase("half a character in an event", text(EVENT, "event", "success", "\\ud800"), "event"),
    ProofCase("a member of an event twice", text(EVENT, "event", "{", '{"outcome": "denied", '),
              "event"),
    ProofCase("an event that is a list", EVENT | {"event": "[1]"}, "event"),
    ProofCase("a bundle of another event",
              BUNDLE | {"event": json.dumps(LOG.shown(6) | {"leaf_index": 5})}, "bundle"),
    ProofCase("a bundle of another number", text(BUNDLE, "bundle", "index 5", "index 4"), "event"),
    ProofCase("a bundle with a zero before its number",
              text(BUNDLE, "bundle", "index 5", "index 05"), "bundle"),
    ProofCase("a bundle without number", text(BUNDLE, "bundle", "index 5\n", ""), "bundle"),
    ProofCase("a bundle of another version", text(BUNDLE, "bundle", "@v1", "@v2"), "bundle"),
    ProofCase("a bundle with carriage returns", text(BUNDLE, "bundle", "@v1\n", "@v1\r\n"),
              "bundle"),
    ProofCase("a bundle with an empty extra", text(BUNDLE, "bundle", "index", "extra \nindex"),
              "bundle"),
    ProofCase("a bundle with extra that ends in bits",
              text(BUNDLE, "bundle", "index", "extra AB==\nindex"), "bundle"),
    ProofCase("a bundle with two extras",
              text(BUNDLE, "bundle", "index", "extra AAAA\nextra AAAA\nindex"), "bundle"),
    ProofCase("a bundle with a hash less", text(BUNDLE, "bundle", PATH[0] + "\n", ""), "bundle"),
    ProofCase("a bundle with a hash more", text(BUNDLE, "bundle", PATH[0], PATH[0] + "\n" + ZERO),
              "bundle"),
    ProofCase("a bundle that begins below its leaf",
              text(BUNDLE, "bundle", PATH[0], ZERO + "\n" + PATH[0]), "bundle"),
    ProofCase("a bundle whose note is unsigned",
              BUNDLE | {"bundle": BUNDLE["bundle"].replace(LOG.note(11), LOG.note(11, STRANGER))},
              "bundle"),
    ProofCase("a bundle whose note is another's",
              BUNDLE | {"bundle": BUNDLE["bundle"].replace(LOG.note(11), OTHER.note(11))},
              "bundle"),
    ProofCase("a bundle without note",
              BUNDLE | {"bundle": BUNDLE["bundle"].replace(LOG.note(11), "")}, "bundle"),
    ProofCase("growth out of another history", CONSISTENCY | {"first": OTHER.note(6)},
              "consistency"),
    ProofCase("growth into another history", CONSISTENCY | {"second": OTHER.note(11)},
              "consistency"),
    ProofCase("growth of other sizes", CONSISTENCY | {"first": LOG.note(7)}, "consistency"),
    ProofCase("other sizes in the proof", member(CONSISTENCY, "consistency", first=7),
              "consistency"),
    ProofCase("growth backwards",
              {"consistency": json.dumps(LOG.consistency(6, 11) | {"first": 11, "second": 6}),
               "first": LOG.note(11), "second": LOG.note(6)},
              "consistency"),
    ProofCase("growth from nothing",
              {"consistency": json.dumps({"first": 0, "second": 6, "consistency_path": []}),
               "first": LOG.note(0), "second": LOG.note(6)},
              "consistency"),
    ProofCase("no growth of two histories",
              {"consistency": json.dumps(LOG.consistency(6, 6)), "first": LOG.note(6),
               "second": OTHER.note(6)},
              "consistency"),
    ProofCase("no growth and a path",
              {"consistency": json.dumps(LOG.consistency(6, 6) | {"consistency_path": [ZERO]}),
               "first": LOG.note(6), "second": LOG.note(6)},
              "consistency"),
    ProofCase("no path of growth", member(CONSISTENCY, "consistency", consistency_path=None),
              "consistency"),
    ProofCase("an empty path of growth", member(CONSISTENCY, "consistency", consistency_path=[]),
              "consistency"),
    ProofCase("a path of growth with a hash before it",
              member(CONSISTENCY, "consistency", consistency_path=[ZERO, *GROWTH]), "consistency"),
    ProofCase("a path of growth with a hash after it",
              member(CONSISTENCY, "consistency", consistency_path=[*GROWTH, ZERO]), "consistency"),
    ProofCase("a size that is true",
              {"consistency": json.dumps(LOG.consistency(1, 6) | {"first": True}),
               "first": LOG.note(1), "second": LOG.note(6)},
              "consistency"),
    ProofCase("an unsigned first", CONSISTENCY | {"first": LOG.note(6, STRANGER)},
              "first"),
    ProofCase("an unsigned second", CONSISTENCY | {"second": LOG.note(11, STRANGER)},
              "second"),
]  # fmt: skip
