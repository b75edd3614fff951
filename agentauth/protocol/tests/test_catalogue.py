"""Catalogues: exact members, bounded texts that hide nothing, words only for what they cover."""

from copy import deepcopy
from typing import Any

import pytest
import rfc8785

from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.catalogue import (
    FORMATS,
    ICONS,
    MAX_ARGUMENTS,
    MAX_CATALOGUE,
    MAX_ENTRIES,
    MAX_LABEL,
    MAX_SENTENCE,
    MAX_UNIT,
    NO_CATALOGUE,
    CatalogueRef,
    parse_catalogue,
)
from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.money import Money

WORDS: dict[str, Any] = {
    "actions": {
        "read:calendar": {"label": "Look", "sentence": "Shows {resource}.", "icon": "calendar"},
        "read:calendar/work": {"label": "Look at work", "sentence": "Shows your work days."},
        "transact:payments": {"label": "Pay", "sentence": "Pays {amount} from {resource}."},
        "custom:acme.print:queues": {
            "label": "Print",
            "sentence": "Prints in colour.",
            "risk": "high",
            "arguments": {
                "size": {"label": "File size", "format": "bytes"},
                "copies": {"label": "Copies", "format": "number", "unit": "pages"},
            },
        },
    },
    "resources": {"calendar": {"label": "Your calendars"}},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """WORDS with the member at the path, such as `actions/read:calendar/label`, set to `value`."""
    found = deepcopy(WORDS)
    *steps, last = path.split("|")
    at = found
    for step in steps:
        at = at[step]
    at[last] = value
    return found


def refused(document: object, *, word: str = "") -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_catalogue(document)
    assert word in caught.value.description


def test_one_catalogue_has_one_canonical_form() -> None:
    read = parse_catalogue(WORDS)
    body: Any = read.to_json()
    assert rfc8785.dumps(body) == read.canonical()
    assert parse_catalogue(read_object(read.canonical())) == read
    spelled = changed("actions|custom:acme.print:queues|arguments|size|format", "bytes")
    assert parse_catalogue(spelled).canonical() == read.canonical()


def test_empty_catalogue_says_nothing() -> None:
    assert parse_catalogue({}) == NO_CATALOGUE
    assert NO_CATALOGUE.words_for(Capability.read("calendar")) is None


PRINT = "actions|custom:acme.print:queues"


@pytest.mark.parametrize(
    "path",
    ["more", "actions|read:calendar|more", "resources|calendar|more", f"{PRINT}|arguments|size|x"],
)
def test_unknown_members_of_a_catalogue_are_refused(path: str) -> None:
    refused(changed(path, "x"), word="unknown")


@pytest.mark.parametrize("name", ["label", "sentence"])
def test_words_of_an_action_need_label_and_sentence(name: str) -> None:
    words = deepcopy(WORDS)
    del words["actions"]["read:calendar"][name]
    refused(words, word="is missing")


@pytest.mark.parametrize("text", [
    "Look \u202eat", "Look\u2066 at", "Lo\u200bok", "Look\nat", "Look\x07", " Look", "Look ",
    "", "“Look”", 'a "quote"', "it''s", "a\\nb", "Cafe\u0301", "\u0301e", "Look\u00a0at", "\ue000",
    None, 7, ["Look"],
])  # fmt: skip
@pytest.mark.parametrize("place", [
    "actions|read:calendar|label", "actions|read:calendar|sentence", "resources|calendar|label",
    f"{PRINT}|arguments|size|label", f"{PRINT}|arguments|copies|unit",
])  # fmt: skip
def test_AP_20_a_catalogue_has_no_text_that_hides_or_poses(place: str, text: Any) -> None:
    refused(changed(place, text))


@pytest.mark.parametrize("text", ["ימים", "days ي", "٣"])
def test_AP_20_words_beside_a_value_are_written_from_left_to_right(text: str) -> None:
    for place in (f"{PRINT}|arguments|size|label", f"{PRINT}|arguments|copies|unit"):
        refused(changed(place, text), word="right to left")
    parse_catalogue(changed("actions|read:calendar|sentence", text))


@pytest.mark.parametrize(
    ("place", "maximum"),
    [
        ("actions|read:calendar|label", MAX_LABEL),
        ("actions|read:calendar|sentence", MAX_SENTENCE),
        ("resources|calendar|label", MAX_LABEL),
        (f"{PRINT}|arguments|size|label", MAX_LABEL),
        (f"{PRINT}|arguments|copies|unit", MAX_UNIT),
    ],
)
def test_texts_of_a_catalogue_have_a_longest_length(place: str, maximum: int) -> None:
    parse_catalogue(changed(place, "é" * maximum))
    refused(changed(place, "é" * (maximum + 1)))


@pytest.mark.parametrize("sentence", [
    "Pays {amount}.", "Shows {size}.", "Shows {}.", "Shows {resource.name}.", "Shows {resource",
    "Shows resource}.", "Shows {{resource}}.", "Shows {resource!r}.", "Shows {Resource}.",
])  # fmt: skip
def test_sentence_has_known_placeholders_only(sentence: str) -> None:
    refused(changed("actions|read:calendar|sentence", sentence), word="braces")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("actions|read:calendar|icon", "skull"),
        ("actions|read:calendar|icon", ""),
        ("actions|read:calendar|icon", None),
        ("actions|read:calendar|risk", "low"),
        (f"{PRINT}|arguments|size|format", "html"),
        (f"{PRINT}|arguments|size|unit", "pages"),
        (f"{PRINT}|arguments|a b", {"label": "x"}),
        ("actions|read", {"label": "x", "sentence": "x"}),
        ("actions|read:*", {"label": "x", "sentence": "x"}),
        ("actions|look:calendar", {"label": "x", "sentence": "x"}),
        ("resources|../x", {"label": "x"}),
        ("actions", []),
        ("resources", None),
    ],
)
def test_members_of_a_catalogue_have_known_values(place: str, value: Any) -> None:
    refused(changed(place, value))


@pytest.mark.parametrize("icon", ICONS)
@pytest.mark.parametrize("written", FORMATS)
def test_known_icons_and_formats_are_accepted(icon: str, written: str) -> None:
    words = changed("actions|read:calendar|icon", icon)
    words["actions"]["custom:acme.print:queues"]["arguments"]["size"]["format"] = written
    parse_catalogue(words)


def test_catalogue_has_a_most_of_entries_and_bytes() -> None:
    entry = {"label": "x", "sentence": "x"}
    many = {f"read:r{n}": entry for n in range(MAX_ENTRIES)}
    parse_catalogue({"actions": many})
    refused({"actions": many | {"read:more": entry}})
    labels = {f"r{n}": {"label": "x"} for n in range(MAX_ENTRIES)}
    parse_catalogue({"resources": labels})
    refused({"resources": labels | {"more": {"label": "x"}}})
    arguments = {f"a{n}": {"label": "x"} for n in range(MAX_ARGUMENTS)}
    parse_catalogue({"actions": {"read:r": entry | {"arguments": arguments}}})
    refused({"actions": {"read:r": entry | {"arguments": arguments | {"more": {"label": "x"}}}}})
    long = {"label": "x" * MAX_LABEL, "sentence": "é" * MAX_SENTENCE}
    refused({"actions": dict.fromkeys(many, long)}, word=str(MAX_CATALOGUE))


def test_words_are_those_of_the_nearest_entry_that_covers_the_act() -> None:
    read = parse_catalogue(WORDS)

    def label(act: Capability | Action) -> str | None:
        found = read.words_for(act)
        return found.label if found else None

    assert label(Capability.read("calendar")) == "Look"
    assert label(Capability.read("calendar/home")) == "Look"
    assert label(Capability.read("calendar/work")) == "Look at work"
    assert label(Capability.read("calendar/work/2026")) == "Look at work"
    assert label(Action("custom", "queues/7", namespace="acme", name="print")) == "Print"
    # Another kind, another name, another resource that only begins alike.
    assert label(Capability.write("calendar")) is None
    assert label(Action("custom", "queues/7", namespace="acme", name="scan")) is None
    assert label(Capability.read("calendars")) is None
    assert label(Action("read", "calendar/../mail")) is None


def test_words_about_a_part_do_not_describe_a_wider_right() -> None:
    only = {"actions": {"read:calendar/work": WORDS["actions"]["read:calendar/work"]}}
    assert parse_catalogue(only).words_for(Capability.read("calendar")) is None


def test_placeholders_are_filled_by_label_or_exact_resource() -> None:
    read = parse_catalogue(WORDS)
    assert read.sentence_for(Capability.read("calendar"), "") == "Shows Your calendars."
    # A label is for exactly its resource.
    assert read.sentence_for(Capability.read("calendar/home"), "") == "Shows calendar/home."
    paid = Action("transact", "payments/eu", Money(500, "EUR"))
    assert read.sentence_for(paid, "€5.00") == "Pays €5.00 from payments/eu."
    assert read.sentence_for(Capability.write("calendar"), "") is None


def test_every_text_of_a_catalogue_is_listed_with_its_place() -> None:
    texts = dict(parse_catalogue(WORDS).texts())
    assert texts["custom:acme.print:queues.arguments.copies.unit"] == "pages"
    assert len(texts) == 12
    assert CatalogueRef(2, "ab" * 32).to_json() == {"version": 2, "sha256": "ab" * 32}
