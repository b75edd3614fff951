"""Every text that people read is marked for translation, and every language has all of them."""

import ast
import gettext
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from tests.messages import MARKS, PLURALS, ROOT, collect, compile_mo, po_of, read_po

TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
# Names and words that are the same in every language.
SAME = {"AgentAuth", "EUR", "UTC"}
ATTRIBUTES = {"alt", "aria-description", "aria-label", "placeholder", "title"}
# Calls whose texts nobody reads: names, and lines of the operator’s log.
NOT_SHOWN = {"set_cookie", "ForeignKey", "TypeVar", "getLogger", "warning", "error", "info"}
UNREAD = {"code", "samp", "script", "style"}
TRANSLATED = re.compile(r"\{%-?\s*blocktranslate\b.*?\{%-?\s*endblocktranslate\s*-?%\}", re.DOTALL)
# Blocks that hold names of classes.
CLASSES = re.compile(r"\{% block \w*class %\}.*?\{% endblock %\}")
TAG = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", re.DOTALL)
ADDRESS = re.compile(r"/\S+")
WORD = re.compile(r"[A-Za-z]{2,}")


class Reader(HTMLParser):
    """Collects the words of a template that no tag translates."""

    def __init__(self) -> None:
        super().__init__()
        self.unmarked: list[str] = []
        self.within: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        is_button = tag == "input" and dict(attrs).get("type") in {"submit", "button", "reset"}
        for name, value in attrs:
            if name in ATTRIBUTES or (name == "value" and is_button):
                self.handle_data(value or "")
        if tag in UNREAD:
            self.within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.within and self.within[-1] == tag:
            self.within.pop()

    def handle_data(self, data: str) -> None:
        # An address is no text.
        words = WORD.findall(ADDRESS.sub("", data))
        if not self.within and any(word not in SAME for word in words):
            self.unmarked.append(" ".join(data.split()))


def unmarked(template: str) -> list[str]:
    reader = Reader()
    text = TAG.sub("", CLASSES.sub("", TRANSLATED.sub("", template)))
    # A file may hold attributes only.
    reader.feed(text if "<" in text else f"<p {text}>")
    reader.close()
    return reader.unmarked


def test_templates_have_no_text_that_is_not_marked() -> None:
    assert TEMPLATES
    assert not [(path, text) for path in TEMPLATES for text in unmarked(path.read_text())]


# Where Python says what people read.
PAGES = sorted(
    path
    for place in ("approvals", "registry", "audit")
    for path in (ROOT / place).rglob("*.py")
    if not {"tests", "migrations", "management"} & set(path.parts)
    and (place == "approvals" or path.name == "admin.py")
    # Browsers and systems have the same names in every language.
    and path.name != "browser_names.py"
)
VALUE = re.compile(r"%\(\w+\)[sd]")
MARKUP = re.compile(r"<[^>]+>")
SENTENCE = re.compile(r"[A-Z“][a-z’]+( [A-Za-z’,“”%(-]+)*[.?!]?")


def plain_texts(tree: ast.Module) -> Iterator[str]:
    """Texts that begin like a sentence, outside docstrings, types, marks and refusals."""
    passed: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in MARKS or name.endswith("Error") or name in NOT_SHOWN:
                passed |= {id(each) for each in ast.walk(node)}
        elif isinstance(node, ast.Expr):
            passed.add(id(node.value))
        elif isinstance(node, ast.Subscript):
            passed.add(id(node.slice))
        elif isinstance(node, ast.Dict):
            passed |= {id(key) for key in node.keys}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in passed
            and SENTENCE.fullmatch(node.value)
        ):
            yield node.value


def test_python_has_no_text_that_is_not_marked() -> None:
    assert PAGES
    assert not [
        (path, text)
        for path in PAGES
        for text in set(plain_texts(ast.parse(path.read_text()))) - SAME
    ]


@pytest.mark.parametrize("language", PLURALS)
def test_each_language_has_every_text(language: str) -> None:
    catalogue, said = collect(), read_po(po_of(language).read_text())
    # If one fails: `python -m tests.messages`, then translate.
    assert not [message for message in catalogue if message not in said]
    assert not [message for message in said if message not in catalogue]
    assert not [message.text for message, texts in said.items() if not all(texts)]


@pytest.mark.parametrize("language", PLURALS)
def test_translations_have_the_values_of_their_text(language: str) -> None:
    for message, texts in read_po(po_of(language).read_text()).items():
        forms = (message.text, message.plural) if message.plural else (message.text,)
        wanted = [set(VALUE.findall(form)) for form in forms]
        for text, form, values in zip(texts, forms, wanted, strict=True):
            assert set(VALUE.findall(text)) <= values | {"%(n)s"}, text
            # A plural's first form may leave the number out.
            assert message.plural or set(VALUE.findall(text)) == values, text
            assert text[:1].isspace() == form[:1].isspace(), text
            assert set(MARKUP.findall(text)) == set(MARKUP.findall(form)), text


# What German texts must not say → what they say instead: one word for one thing.
NOT_GERMAN = {
    r"\bId\b": "ID",
    r"\bGrenzen?\b": "Limit",
    r"\bGenehmigende": "Genehmiger",
    r"\b(abgeschaltet|abschalten)\b": "deaktiviert, deaktivieren",
    r"\bvergessen\b": "löschen, gelöscht",
    r"\b[Bb]ezahl": "zahlen, gezahlt",
    r"\b(am Tag|in der Woche|im Monat)\b": "pro Tag, pro Woche, pro Monat",
    # “Eine Zahlung über 40 €” is a payment of €40, not of more.
    r"[Zz]ahlung(en)? über (%|\d)": "von mehr als",
    r"[\"'”]": "„…“",
}


@pytest.mark.parametrize("wrong", NOT_GERMAN)
def test_german_keeps_one_word_for_one_thing(wrong: str) -> None:
    said = read_po(po_of("de").read_text()).values()
    found = [text for texts in said for text in texts if re.search(wrong, MARKUP.sub("", text))]
    assert not found, f"say {NOT_GERMAN[wrong]}"


@pytest.mark.parametrize("language", PLURALS)
def test_the_compiled_catalogue_is_that_of_the_texts(language: str) -> None:
    path = po_of(language)
    compiled = path.with_suffix(".mo").read_bytes()
    assert compiled == compile_mo(language, read_po(path.read_text())), (
        "run `python -m tests.messages`"
    )
    found = gettext.GNUTranslations(io.BytesIO(compiled))
    for message, texts in read_po(path.read_text()).items():
        if message.plural and message.context:
            said = [
                found.npgettext(message.context, message.text, message.plural, n) for n in (1, 2)
            ]
        elif message.plural:
            said = [found.ngettext(message.text, message.plural, n) for n in (1, 2)]
        elif message.context:
            said = [found.pgettext(message.context, message.text)]
        else:
            said = [found.gettext(message.text)]
        assert tuple(said) == texts


def test_unmarked_text_is_found_wherever_a_page_shows_it() -> None:
    assert unmarked("<p>Hello there</p>")
    assert unmarked('<button aria-label="Close it">×</button>')
    assert unmarked('<input type="submit" value="Send">')
    assert not unmarked('<p class="note">{% translate "Hello" %}</p><input value="open">')
    assert list(plain_texts(ast.parse('answer(status="Signed in")')))
    assert not list(plain_texts(ast.parse('answer(status=_("Signed in"))')))
