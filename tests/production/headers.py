"""Checks an answer against the header table of docs/protocol.md: all required, none unnamed."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from tests.contract.test_page import rows, section

# Set by the proxy between client and server.
OF_THE_PROXY = {"server", "connection", "via"}


@dataclass(frozen=True)
class Answer:
    """What the table distinguishes answers by."""

    method: str
    path: str
    status: int
    content: bytes

    @property
    def api(self) -> bool:
        """Whether the address is one of sections 4 to 9."""
        return self.path.startswith(("/v1/", "/.well-known/"))

    @property
    def static(self) -> bool:
        return self.path.startswith("/static/") and self.status == 200

    @property
    def page(self) -> bool:
        return not self.api and not self.static

    def has(self, code: str) -> bool:
        return re.match(rb'\{"error": ?"%s"' % code.encode(), self.content) is not None


Holds = Callable[[Answer], bool]


def always(_: Answer) -> bool:
    return True


def never(_: Answer) -> bool:
    return False


# By the table's last column: the answers that must have the header, and others that may.
PLACES: dict[str, tuple[Holds, Holds]] = {
    "every answer": (always, never),
    "every answer in production": (always, never),
    "every answer with a body": (lambda a: bool(a.content), always),
    "every answer but static files": (lambda a: not a.static, never),
    "405; others of sections 4 to 9 may have it": (lambda a: a.status == 405, lambda a: a.api),
    "401": (lambda a: a.status == 401, never),
    "429, 503 and `not_yet_logged`": (
        lambda a: a.status in {429, 503} or a.has("not_yet_logged"),
        never,
    ),
    "`use_dpop_nonce`; other answers to a proof may have it": (
        lambda a: a.has("use_dpop_nonce"),
        lambda a: a.api,
    ),
    "3xx": (lambda a: 300 <= a.status < 400 and a.status != 304, never),
    "pages alone": (never, lambda a: a.page),
    "static files alone": (never, lambda a: a.static),
}


@cache
def table() -> dict[str, tuple[str, str]]:
    """Header, in lower case → its value if fixed, and on which answers it occurs."""
    found = {}
    for names, value, place in rows(section(0), "Headers of every answer"):
        exact = re.fullmatch(r"`([^`]+)`", value)
        for name in re.findall(r"`([^`]+)`", names):
            found[name.lower()] = (exact[1] if exact else "", place)
    return found


def faults(answer: Answer, headers: Iterable[tuple[str, str]]) -> list[str]:
    """What is wrong with the answer's headers, one line each."""
    given = [(name.lower(), value) for name, value in headers]
    wrong = [
        f"{name} twice"
        for name, _ in given
        if [n for n, _ in given].count(name) > 1 and name != "set-cookie"
    ]
    for name, (value, place) in table().items():
        must, may = (rule(answer) for rule in PLACES[place])
        found = dict(given).get(name)
        if found is None and must:
            wrong.append(f"without {name}")
        elif found is not None and not must and not may:
            wrong.append(f"with {name}: {found}")
        elif found is not None and value and found != value:
            wrong.append(f"{name}: {found} instead of {value}")
    return wrong + [
        f"unknown {name}" for name, _ in given if name not in table().keys() | OF_THE_PROXY
    ]


def check(
    method: str, path: str, status: int, headers: Iterable[tuple[str, str]], content: bytes
) -> None:
    """Assert that the answer matches the table."""
    assert not (wrong := faults(Answer(method, path, status, content), headers)), (
        method,
        path,
        status,
        wrong,
    )
