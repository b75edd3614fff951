"""Find names that look like a service provider's, this registry's or another agent's.

UTS #39; docs/protocol.md section 5.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache

from django.conf import settings

from agentauth.protocol.errors import InvalidRequestError
from registry.models import Agent, Human, ServiceProvider

REGISTRY_NAME = "AgentAuth"
# Scripts written together, as in Japanese, Chinese and Korean (UTS #39 section 5.2, highly
# restrictive).
_WRITTEN_TOGETHER = (
    frozenset({"LATIN", "HAN", "HIRAGANA", "KATAKANA"}),
    frozenset({"LATIN", "HAN", "BOPOMOFO"}),
    frozenset({"LATIN", "HAN", "HANGUL"}),
)
# Read as a word of a sentence, not as a name: “Nobody may spend …” says the opposite of what it
# grants. Our sentences have a subject of their own and quote names, so this short list is enough.
# Names that look like one of these are refused too.
_WORDS = (
    "nobody", "no one", "none", "nothing", "no agent", "anybody", "anyone", "everybody", "everyone",
    "somebody", "someone",
    "you", "the agent", "this agent", "an agent", "your agent", "the service", "this service",
)  # fmt: skip
_ADDRESS = "you"
_NO_SCRIPT = frozenset({"COMMON", "INHERITED"})
# Box drawings: symbols by category, but drawn like a dash.
_LINES = frozenset("\u2500\u2501")
# The table puts letters of right-to-left scripts between two of these.
_LEFT_TO_RIGHT_MARK = "\u200e"


class Whose(StrEnum):
    """Whose name it looks like; `alphabets`: no known one, but it mixes alphabets as fakes do."""

    SERVICE = "service"
    REGISTRY = "registry"
    AGENT = "agent"
    ALPHABETS = "alphabets"


@dataclass(frozen=True, slots=True)
class Likeness:
    """One reason to check an agent's name: the name it resembles, and whether it is identical."""

    whose: Whose
    name: str = ""
    exact: bool = False


def likenesses(agent: Agent, human: Human | None) -> list[Likeness]:
    """What the agent's name resembles, for the human who decides about it; usually nothing.

    Two queries: service providers and the human's other agents, both without revoked ones.
    """
    found = [
        each
        for each in _vouched_for(agent, human)
        if each.exact or look_alike(agent.name, each.name)
    ]
    if mixes_alphabets(agent.name):
        found.append(Likeness(Whose.ALPHABETS))
    # Two agents with the same name are one reason.
    return list(dict.fromkeys(found))


def _vouched_for(agent: Agent, human: Human | None) -> Iterator[Likeness]:
    services = ServiceProvider.objects.exclude(status=ServiceProvider.Status.REVOKED)
    for name in services.order_by("name").values_list("name", flat=True):
        yield Likeness(Whose.SERVICE, name, exact=name == agent.name)
    for name in (REGISTRY_NAME, str(settings.RP_ID)):
        yield Likeness(Whose.REGISTRY, name, exact=name == agent.name)
    others = (
        Agent.objects.filter(human=human).exclude(status=Agent.Status.REVOKED).exclude(pk=agent.pk)
    )
    for name in others.order_by("name").values_list("name", flat=True) if human else ():
        yield Likeness(Whose.AGENT, name, exact=name == agent.name)


def look_alike(one: str, other: str) -> bool:
    """Whether a hurried reader could take one name for the other."""
    return picture(one) == picture(other) != ""


def check_is_no_word(name: str, where: str = "name") -> None:
    """Refuse a name that reads as a word of our sentences, or as addressing the reader.

    See docs/protocol.md section 5. Raises InvalidRequestError naming `where`.
    """
    words = {picture(word) for word in _WORDS}
    if picture(name) in words or picture(name.split(maxsplit=1)[0]) == picture(_ADDRESS):
        raise InvalidRequestError(
            f"{where}: must not read as a word such as “Nobody” or “You”. Choose another."
        )


def mixes_alphabets(name: str) -> bool:
    """Whether a name mixes alphabets that are not written together, such as Latin and Cyrillic."""
    from confusable_homoglyphs.categories import unique_aliases  # with its table, see `_prototypes`

    scripts = frozenset(unique_aliases(name)) - _NO_SCRIPT
    return len(scripts) > 1 and not any(scripts <= together for together in _WRITTEN_TOGETHER)


@lru_cache(maxsize=8192)
def picture(name: str) -> str:
    """A name as a hurried reader sees it; names with the same picture look alike.

    The UTS #39 skeleton, lower-cased, and its skeleton again: a capital may look like a letter that
    its small form does not resemble. i and l count as one, since capital I looks like both. Spaces
    and punctuation are removed, before and after: the table maps a dash to a letter, so an
    extra hyphen, which readers overlook, would make a difference.
    """
    return _without_punctuation(
        _skeleton(_skeleton(_without_punctuation(name)).casefold()).replace("i", "l")
    )


def _without_punctuation(text: str) -> str:
    return "".join(
        each for each in text if unicodedata.category(each)[0] not in "ZP" and each not in _LINES
    )


def _skeleton(text: str) -> str:
    """UTS #39 section 4, over NFKD: each character becomes the one it looks like."""
    table = _prototypes()
    drawn = "".join(table.get(each, each) for each in unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFKD", drawn)


@cache
def _prototypes() -> dict[str, str]:
    """Character to what it looks like, from Unicode's confusables.txt in `confusable-homoglyphs`.

    The package lists each pair in both directions. Of a group, the prototype is the character that
    the most others look like; of a lone pair either will do, as long as it is always the same one.
    A character that looks like several, as m looks like rn, is never a prototype.
    """
    # Ten megabytes: loaded only by processes that render pages, not by those that verify.
    from confusable_homoglyphs.confusables import confusables_data

    like: dict[str, set[str]] = defaultdict(set)
    for one, others in confusables_data.items():
        for other in others:
            pair = one.strip(_LEFT_TO_RIGHT_MARK), other["c"].strip(_LEFT_TO_RIGHT_MARK)
            like[pair[0]].add(pair[1])
            like[pair[1]].add(pair[0])
    table = {}
    for one, others in like.items():
        middle = max({one, *others}, key=lambda each: (len(each), len(like[each]), each))
        if len(one) == 1:
            table[one] = middle
    # A prototype of several characters may contain the half of a pair that was not chosen.
    return {one: "".join(table.get(each, each) for each in seen) for one, seen in table.items()}
