"""docs/install.md and upgrade.md as programs: shell blocks by section, with local paths."""

import re
from pathlib import Path
from textwrap import dedent

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Page:
    """The blocks of both pages. `places` maps printed texts to local ones; each must occur."""

    def __init__(self, places: dict[str, str]) -> None:
        text = "\n".join((DOCS / name).read_text() for name in ("install.md", "upgrade.md"))
        for printed in places:
            assert printed in text, f"no page says {printed} any more"
        # In one pass, longest first: a replacement is not replaced again.
        told = re.compile("|".join(map(re.escape, sorted(places, key=len, reverse=True))))
        self._told, self._places = told, places
        _, *parts = _SECTION.split(self.here(text))
        self.sections = {
            title: list(map(dedent, _BLOCK.findall(body)))
            for title, body in zip(parts[::2], parts[1::2], strict=True)
        }

    def here(self, text: str) -> str:
        """The text with local paths in place of the printed ones."""
        return self._told.sub(lambda found: self._places[found[0]], text)

    def blocks(self, title: str) -> list[str]:
        """The shell blocks below this heading, in order."""
        return self.sections[title]
