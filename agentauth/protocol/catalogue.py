"""A service provider's catalogue: its own words for its actions, resources and arguments.

People read these words beside the registry's sentence for the same act, always marked as the
service's. They never replace it (docs/protocol.md section 3).
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .argument_constraint import check_argument
from .capability import (
    Action,
    Capability,
    is_resource,
    lies_under,
    parse_allow_entry,
)
from .encoding import canonical_json, sha256
from .errors import InvalidRequestError
from .json_fields import members, quote_safely, text
from .untrusted_text import check_quotable

# Bytes of canonical JSON. An administrator reads all of it, and the receipt of the approval, at
# most 65,536 bytes, contains each text once.
MAX_CATALOGUE: Final = 16_384
MAX_ENTRIES: Final = 64
MAX_ARGUMENTS: Final = 16
MAX_LABEL: Final = 60
MAX_SENTENCE: Final = 160
MAX_UNIT: Final = 20
# The icons that pages can draw (templates/service_icon.html).
ICONS: Final = (
    "calendar", "chat", "cloud", "document", "folder", "gear", "image", "key", "mail", "money",
    "people", "printer", "search", "table",
)  # fmt: skip
# How the registry formats an argument's value, always beside the exact value.
FORMATS: Final = ("text", "number", "bytes", "percent", "duration")
# A risk is shown only if it is above the risk of the type itself.
RISKS: Final = ("medium", "high")
# A number after such a letter is displayed before it (UAX #9).
_RIGHT_TO_LEFT: Final = frozenset({"R", "AL", "AN"})
_PLACEHOLDER: Final = re.compile(r"\{([a-z]*)\}")


@dataclass(frozen=True, slots=True)
class ArgumentWords:
    """What the service calls an argument, and how to write its values."""

    label: str
    format: str = "text"
    unit: str = ""

    def to_json(self) -> dict[str, object]:
        """The wire form."""
        unit = {"unit": self.unit} if self.unit else {}
        return {"label": self.label, "format": self.format, **unit}


@dataclass(frozen=True, slots=True)
class ActionWords:
    """The service's words for one kind of act on a resource and everything below it."""

    kind: Capability
    label: str
    sentence: str
    icon: str = ""
    # A risk that the service adds to that of the type; empty for none.
    risk: str = ""
    arguments: Mapping[str, ArgumentWords] = field(default_factory=dict)

    def covers(self, act: Capability | Action) -> bool:
        """Whether these words cover the whole act: the same kind, at or below the resource."""
        same = (self.kind.type, self.kind.namespace, self.kind.name)
        # Words about a part must not describe a wider permission.
        return same == (act.type, act.namespace, act.name) and lies_under(
            act.resource, self.kind.resource
        )

    def to_json(self) -> dict[str, object]:
        """The wire form."""
        named = {"icon": self.icon, "risk": self.risk}
        arguments = {name: each.to_json() for name, each in self.arguments.items()}
        return {
            "label": self.label,
            "sentence": self.sentence,
            **{name: value for name, value in named.items() if value},
            **({"arguments": arguments} if arguments else {}),
        }


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A checked catalogue: words by `type:resource`, labels by resource. Built by the parser."""

    actions: Mapping[str, ActionWords] = field(default_factory=dict)
    resources: Mapping[str, str] = field(default_factory=dict)

    def words_for(self, act: Capability | Action) -> ActionWords | None:
        """The words of the most specific entry that covers the act; None if there is none."""
        found = [each for each in self.actions.values() if each.covers(act)]
        return max(found, key=lambda each: len(each.kind.resource), default=None)

    def sentence_for(self, act: Capability | Action, amount: str) -> str | None:
        """The service's sentence about the act, with its placeholders filled in.

        `amount` is the act's amount as the reader writes it.
        """
        words = self.words_for(act)
        if words is None:
            return None
        values = {"resource": self.resources.get(act.resource, act.resource), "amount": amount}
        return _PLACEHOLDER.sub(lambda found: values[found[1]], words.sentence)

    def to_json(self) -> dict[str, object]:
        """The wire form."""
        return {
            "actions": {entry: words.to_json() for entry, words in self.actions.items()},
            "resources": {name: {"label": label} for name, label in self.resources.items()},
        }

    def canonical(self) -> bytes:
        """The RFC 8785 bytes: equal catalogues have equal bytes."""
        return canonical_json(self.to_json())

    def texts(self) -> list[tuple[str, str]]:
        """Each text that the service wrote, with its place in the catalogue."""
        found = []
        for entry, words in self.actions.items():
            found += [(f"{entry}.label", words.label), (f"{entry}.sentence", words.sentence)]
            for name, each in words.arguments.items():
                place = f"{entry}.arguments.{name}"
                found.append((f"{place}.label", each.label))
                found += [(f"{place}.unit", each.unit)] if each.unit else []
        return found + [(f"{name}.label", label) for name, label in self.resources.items()]


NO_CATALOGUE: Final = Catalogue()


@dataclass(frozen=True, slots=True)
class CatalogueRef:
    """The version of a catalogue whose words a text contains: its number and its digest."""

    version: int
    sha256: str

    def to_json(self) -> dict[str, object]:
        """The wire form."""
        return {"version": self.version, "sha256": self.sha256}


def catalogue_sha256(canonical: bytes) -> str:
    """The digest that names a catalogue: lower-case hex SHA-256 of its canonical bytes."""
    return sha256(canonical).hex()


def parse_catalogue(obj: object, where: str = "catalogue") -> Catalogue:
    """Parse a catalogue strictly. `{}` is valid and has no words.

    Raises InvalidRequestError naming the member (docs/protocol.md section 3).
    """
    body = members(obj, where, optional=("actions", "resources"))
    actions = _entries(body.get("actions", {}), f"{where}.actions", MAX_ENTRIES)
    resources = _entries(body.get("resources", {}), f"{where}.resources", MAX_ENTRIES)
    found = Catalogue(
        {entry: _parse_action(entry, each, f"{where}.actions") for entry, each in actions},
        {name: _parse_resource(name, each, f"{where}.resources") for name, each in resources},
    )
    if len(found.canonical()) > MAX_CATALOGUE:
        raise InvalidRequestError(
            f"{where}: must not be longer than {MAX_CATALOGUE} bytes of canonical JSON."
        )
    return found


def _entries(obj: object, where: str, maximum: int) -> list[tuple[str, object]]:
    if not isinstance(obj, dict) or len(obj) > maximum:
        raise InvalidRequestError(f"{where}: must be a JSON object of at most {maximum} members.")
    return list(obj.items())


def _parse_action(entry: str, obj: object, where: str) -> ActionWords:
    kind = parse_allow_entry(entry, where)
    where = f"{where}.{quote_safely(entry)}"
    body = members(
        obj, where, required=("label", "sentence"), optional=("icon", "risk", "arguments")
    )
    arguments = _entries(body.get("arguments", {}), f"{where}.arguments", MAX_ARGUMENTS)
    return ActionWords(
        kind,
        check_quotable(body["label"], f"{where}.label", maximum=MAX_LABEL),
        _parse_sentence(body["sentence"], f"{where}.sentence", pays=kind.type == "transact"),
        _one_of(body, "icon", ICONS, where),
        _one_of(body, "risk", RISKS, where),
        {
            check_argument(name, f"{where}.arguments"): _parse_argument(
                each, f"{where}.arguments.{quote_safely(name)}"
            )
            for name, each in arguments
        },
    )


def _parse_sentence(obj: object, where: str, *, pays: bool) -> str:
    sentence = text(obj, where, maximum=MAX_SENTENCE)
    # The amount is the registry's; only a payment has one. Arguments are not allowed: an agent
    # chooses their values, and its words must not read as the service's.
    known = ("resource", "amount") if pays else ("resource",)
    rest = _PLACEHOLDER.sub("", sentence)
    if "{" in rest or "}" in rest or not set(_PLACEHOLDER.findall(sentence)) <= set(known):
        names = " and ".join(f"{{{name}}}" for name in known)
        raise InvalidRequestError(f"{where}: braces are allowed only in {names}.")
    return check_quotable(sentence, where, maximum=MAX_SENTENCE)


def _one_of(body: Mapping[str, object], name: str, known: tuple[str, ...], where: str) -> str:
    value = body.get(name, "")
    if name in body and value not in known:
        raise InvalidRequestError(f"{where}.{name}: must be one of {', '.join(known)}.")
    return str(value)


def _parse_argument(obj: object, where: str) -> ArgumentWords:
    body = members(obj, where, required=("label",), optional=("format", "unit"))
    written = _one_of(body, "format", FORMATS, where) or "text"
    if "unit" in body and written != "number":
        raise InvalidRequestError(f"{where}.unit: is allowed only with the format number.")
    return ArgumentWords(
        _beside_a_value(body["label"], f"{where}.label", MAX_LABEL),
        written,
        _beside_a_value(body["unit"], f"{where}.unit", MAX_UNIT) if "unit" in body else "",
    )


def _beside_a_value(obj: object, where: str, maximum: int) -> str:
    """A text on the same line as one of our values, which it must not move."""
    words = check_quotable(obj, where, maximum=maximum)
    if any(unicodedata.bidirectional(each) in _RIGHT_TO_LEFT for each in words):
        raise InvalidRequestError(
            f"{where}: letters written from right to left would move the value beside it."
        )
    return words


def _parse_resource(name: str, obj: object, where: str) -> str:
    if not is_resource(name):
        raise InvalidRequestError(f"{where}: {quote_safely(name)} is not a resource.")
    body = members(obj, f"{where}.{quote_safely(name)}", required=("label",))
    return check_quotable(body["label"], f"{where}.{quote_safely(name)}.label", maximum=MAX_LABEL)
