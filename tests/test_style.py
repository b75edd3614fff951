"""The words of the project are plain English: few style markers, and none that a user reads."""

from functools import cache
from pathlib import Path

import pytest

from tests import style

# A marker is sometimes the right word. pypi/warehouse and python-tuf, whose comments we take as a
# model, have 0.03 and 0.05.
MOST_PER_THOUSAND = 0.1


@cache
def ours() -> dict[str, style.Count]:
    return style.count(style.ROOT)


def test_comments_have_few_style_markers() -> None:
    comments = ours()[style.COMMENTS]
    assert comments.per_thousand <= MOST_PER_THOUSAND, comments.places


@pytest.mark.parametrize("kind", [style.DOCS, style.MESSAGES])
def test_docs_and_messages_have_no_style_marker(kind: str) -> None:
    assert ours()[kind].places == []
    assert ours()[kind].words > 10_000


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("app/one.py", '"""A pass.\n\nNobody reads it."""\n', {"comments": [3]}),
        ("app/one.py", '"""Nobody reads it."""\n', {"comments": [1]}),
        ("app/one.py", "x = 1  # it is\n# asked\n# of us\n", {"comments": [2]}),
        ("app/one.py", 'x = f"nobody reads {1}"\n', {"messages": [1]}),
        ("app/one.py", 'x = "nobody"  # `nobody`, as in “Nobody may”\n', {}),
        ("app/tests/one.py", 'x = "nobody reads it"\n', {}),
        ("page.md", "```\nnobody\n```\nasked\nof [one](nobody.md)\n", {"docs": [4]}),
        ("page.rst", "Like so::\n\n  nobody\n\nand whoever\n", {"docs": [5]}),
        (
            "page.html",
            "<p class=nobody>{% if anew %}\n{% translate 'Anew: it' %}<a title=\"Nobody\">",
            {"docs": [2, 2]},
        ),
    ],
)
def test_a_marker_is_found_in_prose_alone(
    tmp_path: Path, name: str, text: str, places: dict[str, list[int]]
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    found: dict[str, list[int]] = {}
    for kind, line, prose in style.prose(path, Path(name)):
        for place in style.markers(prose, line):
            found.setdefault(kind, []).append(place[0])
    assert found == places
