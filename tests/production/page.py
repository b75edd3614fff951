"""docs/install.md as a program: its shell blocks by section, with this machine's places where the page names its own."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "install.md"
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Page:
    """The blocks of the page. `places` are the texts that other machines have otherwise, each of which the page must name."""

    def __init__(self, places: dict[str, str]) -> None:
        text = PAGE.read_text()
        for printed in places:
            assert printed in text, f"docs/install.md does not say {printed} any more"
        # In one go, longest first: what was put in place of one is not looked at again.
        told = re.compile("|".join(map(re.escape, sorted(places, key=len, reverse=True))))
        _, *parts = _SECTION.split(told.sub(lambda found: places[found[0]], text))
        self.sections = {
            title: _BLOCK.findall(body) for title, body in zip(parts[::2], parts[1::2], strict=True)
        }

    def blocks(self, title: str) -> list[str]:
        """The shell blocks below this heading, in order."""
        return self.sections[title]
