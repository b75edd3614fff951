"""Names that look like one we vouch for: services, this registry, a human's other agents (UTS #39, docs/protocol.md section 5)."""

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
# Latin goes with each of these, as Japanese, Chinese and Korean are written (UTS #39 section 5.2, highly restrictive).
_WRITTEN_TOGETHER = (
    frozenset({"LATIN", "HAN", "HIRAGANA", "KATAKANA"}),
    frozenset({"LATIN", "HAN", "BOPOMOFO"}),
    frozenset({"LATIN", "HAN", "HANGUL"}),
)
# Read as a word of a sentence, not as a name: “Nobody may spend …” says the opposite of what it grants. Sentences
# have a subject of their own and quote names, so this list is short; it is compared as names are that look alike.
_WORDS = (
    "nobody", "no one", "none", "nothing", "no agent", "anybody", "anyone", "everybody", "everyone", "somebody", "someone",
    "you", "the agent", "this agent", "an agent", "your agent", "the service", "this service",
)  # fmt: skip
_ADDRESS = "you"
_NO_SCRIPT = frozenset({"COMMON", "INHERITED"})
# Box drawings: symbols by their category, drawn as a dash is.
_LINES = frozenset("\u2500\u2501")
# The table writes letters of right-to-left scripts between two of these.
_LEFT_TO_RIGHT_MARK = "\u200e"


class Whose(StrEnum):
    """Whose name it looks like; `alphabets` where it looks like nobody's, but is made as such names are."""

    SERVICE = "service"
    REGISTRY = "registry"
    AGENT = "agent"
    ALPHABETS = "alphabets"


@dataclass(frozen=True, slots=True)
class Likeness:
    """One reason to look at an agent's name twice: the name it resembles, and whether it is that very name."""

    whose: Whose
    name: str = ""
    exact: bool = False


def likenesses(agent: Agent, human: Human | None) -> list[Likeness]:
    """What the agent's name resembles, for the human who decides about it; mostly nothing.

    Two queries: service providers that are not revoked, and the human's other agents that are not.
    """
    found = [each for each in _vouched_for(agent, human) if each.exact or look_alike(agent.name, each.name)]
    if mixes_alphabets(agent.name):
        found.append(Likeness(Whose.ALPHABETS))
    # Two agents of one name are one reason.
    return list(dict.fromkeys(found))


def _vouched_for(agent: Agent, human: Human | None) -> Iterator[Likeness]:
    services = ServiceProvider.objects.exclude(status=ServiceProvider.Status.REVOKED)
    for name in services.order_by("name").values_list("name", flat=True):
        yield Likeness(Whose.SERVICE, name, exact=name == agent.name)
    for name in (REGISTRY_NAME, str(settings.RP_ID)):
        yield Likeness(Whose.REGISTRY, name, exact=name == agent.name)
    others = Agent.objects.filter(human=human).exclude(status=Agent.Status.REVOKED).exclude(pk=agent.pk)
    for name in others.order_by("name").values_list("name", flat=True) if human else ():
        yield Likeness(Whose.AGENT, name, exact=name == agent.name)


def look_alike(one: str, other: str) -> bool:
    """Whether a hurried eye takes one name for the other."""
    return _picture(one) == _picture(other) != ""


def check_is_no_word(name: str, where: str = "name") -> None:
    """See that a name does not read as a word of our sentences, nor as one said to the reader (section 5).

    Raises InvalidRequestError naming `where`.
    """
    words = {_picture(word) for word in _WORDS}
    if _picture(name) in words or _picture(name.split(maxsplit=1)[0]) == _picture(_ADDRESS):
        raise InvalidRequestError(f"{where}: must not read as a word such as Nobody or You. Choose another.")


def mixes_alphabets(name: str) -> bool:
    """Whether letters of alphabets that are not written together stand in one name, such as Latin and Cyrillic."""
    from confusable_homoglyphs.categories import unique_aliases  # with its table, see `_prototypes`

    scripts = frozenset(unique_aliases(name)) - _NO_SCRIPT
    return len(scripts) > 1 and not any(scripts <= together for together in _WRITTEN_TOGETHER)


@lru_cache(maxsize=8192)
def _picture(name: str) -> str:
    """What is left of a name in a hurried eye; names with the same picture look alike.

    The skeleton of UTS #39, made small and drawn again: a capital may look like a letter its small form does not.
    i and l are one, since capital I is like both. Spaces and punctuation fall out, before as well, since the table draws
    a dash as a letter: another hyphen is not seen.
    """
    return _without_punctuation(_skeleton(_skeleton(_without_punctuation(name)).casefold()).replace("i", "l"))


def _without_punctuation(text: str) -> str:
    return "".join(each for each in text if unicodedata.category(each)[0] not in "ZP" and each not in _LINES)


def _skeleton(text: str) -> str:
    """UTS #39 section 4, over NFKD: each character by the one it looks like, full-width and ornate ones too."""
    table = _prototypes()
    drawn = "".join(table.get(each, each) for each in unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFKD", drawn)


@cache
def _prototypes() -> dict[str, str]:
    """Character to what it looks like, from Unicode's confusables.txt as `confusable-homoglyphs` brings it.

    There each pair stands in both directions: the one that many others look like is in the middle, and of a pair
    by itself either will do, as long as it is always the same. What looks like several characters, as m does like
    rn, is never in the middle.
    """
    # Ten megabytes: for processes that draw pages, not for those that verify.
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
    # What looks like several may hold the one of a pair that we did not choose.
    return {one: "".join(table.get(each, each) for each in picture) for one, picture in table.items()}
