"""Counts the words of a tree's comments, docs and messages, and the style markers among them.

`python -m tests.style [PATH …]` prints one row per tree, so that our prose can be compared with
another project's checkout; `--places` also prints where the markers are. The markers are
expressions that plain English does not need (`[tool.agentauth.style]` in pyproject.toml). Code
spans and short quotations are not searched. Only files that git tracks, or would, are read.
"""

import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STYLE = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["agentauth"]["style"]
MARKER = re.compile(rf"\b(?:{'|'.join(STYLE['markers'])})\b".replace(" ", r"[\s#]+"), re.IGNORECASE)
COMMENTS, DOCS, MESSAGES = KINDS = "comments", "docs", "messages"
PROSE = {".md", ".rst", ".html"}
# Messages are the texts of code that ships: what tests and migrations say is shown to no user.
UNSHIPPED = {"tests", "migrations", "benchmarks"}
QUOTED = re.compile(r'``.+?``|`[^`]*`|“[^”]{1,40}”|"[^"\n]{1,40}"')
FENCED = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)
LITERAL = re.compile(r"::\n\n(?:[ \t]+.*\n|\n)+")
# A string that begins a statement is a docstring. Read as tokens, a file may be of a newer Python.
TEXTS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
STATEMENT_ENDS = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}
QUOTES = re.compile(r"""^[A-Za-z]{0,2}["']+|["']+$""")
LINK = re.compile(r"\]\([^)]*\)|https?://\S+")
TRANSLATED = re.compile(r"""\{%-?\s*trans(?:late)?\s+(["'])(.*?)\1.*?%\}""", re.DOTALL)
TEMPLATE = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", re.DOTALL)
TAG = re.compile(r"<[^>]*>")
SHOWN = re.compile(r'\b(?:title|alt|aria-label|placeholder)="([^"]*)"')
WORD = re.compile(r"[A-Za-z][\w’'-]*")


@dataclass
class Count:
    """Words of one kind of prose, and each marker as `path:line: marker`."""

    words: int = 0
    places: list[str] = field(default_factory=list)

    @property
    def per_thousand(self) -> float:
        return 1000 * len(self.places) / max(self.words, 1)


def count(root: Path) -> dict[str, Count]:
    """The prose of a tree, by kind."""
    counts = {kind: Count() for kind in KINDS}
    for path in files(root):
        name = path.relative_to(root)
        for kind, line, text in prose(path, name):
            counts[kind].words += len(WORD.findall(QUOTED.sub(blank, text)))
            counts[kind].places += [
                f"{name}:{number}: {marker}" for number, marker in markers(text, line)
            ]
    return counts


def markers(text: str, line: int) -> list[tuple[int, str]]:
    """The line of each marker in a text that begins at `line`, and the marker."""
    searched = QUOTED.sub(blank, text)
    return [
        (line + searched.count("\n", 0, found.start()), found[0].lower())
        for found in MARKER.finditer(searched)
    ]


def files(root: Path) -> list[Path]:
    """The files with prose, but for those that a program of this project writes."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    paths = [root / name for name in listed.stdout.splitlines() if name not in STYLE["generated"]]
    return [path for path in paths if path.suffix in PROSE | {".py"} and path.is_file()]


def prose(path: Path, name: Path) -> Iterator[tuple[str, int, str]]:
    """Each text of a file: its kind, its first line, and the text."""
    text = path.read_text()
    if path.suffix in PROSE:
        yield DOCS, 1, (page if path.suffix == ".html" else document)(text)
        return
    shipped = not UNSHIPPED & set(name.parts)
    comment, begun, column = "", 0, 0
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            follows = begun + comment.count("\n") + 1 == token.start[0]
            if comment and not (follows and column == token.start[1]):
                yield COMMENTS, begun, comment
                comment = ""
            comment, begun = (
                (f"{comment}\n{token.string}", begun) if comment else (token.string, token.start[0])
            )
            column = token.start[1]
        elif token.type in TEXTS:
            if before in STATEMENT_ENDS:
                yield COMMENTS, token.start[0], QUOTES.sub("", token.string)
            elif shipped and " " in token.string:
                yield MESSAGES, token.start[0], QUOTES.sub("", token.string)
        if token.type not in {tokenize.COMMENT, tokenize.NL}:
            before = token.type
    yield COMMENTS, begun, comment


def document(text: str) -> str:
    """Markdown or reStructuredText without code and addresses; lines keep their numbers."""
    for code in (FENCED, LITERAL, LINK):
        text = code.sub(blank, text)
    return text


def page(text: str) -> str:
    """What a template shows: its texts, and those attributes that a browser shows or reads out."""
    text = TRANSLATED.sub(lambda found: found[2].replace('"', "”"), text)
    text = TEMPLATE.sub(blank, text)
    return TAG.sub(lambda tag: blank(tag) + " ".join(SHOWN.findall(tag[0])), text)


def blank(found: re.Match[str]) -> str:
    """As many line breaks as the removed text had."""
    return " " + "\n" * found[0].count("\n")


def main(arguments: list[str]) -> None:
    paths = [Path(each).resolve() for each in arguments if each != "--places"] or [ROOT]
    print("| tree | " + " | ".join(f"{kind}: words, markers, per 1,000" for kind in KINDS) + " |")
    print("|---|" + "---|" * len(KINDS))
    for path in paths:
        counts = count(path)
        cells = [
            f"{each.words:,}, {len(each.places)}, {each.per_thousand:.2f}"
            for each in counts.values()
        ]
        print(f"| {path.name} | " + " | ".join(cells) + " |")
        if "--places" in arguments:
            print(*[place for each in counts.values() for place in each.places], sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
