"""The catalogue of what people read: collects marked texts, and compiles the translations.

`python -m tests.messages` adds the texts of templates and Python to each `locale/*/django.po`,
drops those that are gone, and compiles `django.mo`. It needs no gettext programs. Then translate
each empty `msgstr` and run it again. `tests/test_messages.py` fails while a text is missing.
"""

import ast
import os
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOCALE = ROOT / "locale"
APPS = ("agentauth", "audit", "kms", "registry", "verifier", "approvals")
# What a page may show of a refusal: `error_text` looks its English sentence up in the catalogue.
REFUSING = (
    "approvals/",
    "registry/services/",
    "registry/caller_limits.py",
    "registry/permissions.py",
    "verifier/services/",
    "agentauth/http_errors.py",
    "agentauth/middleware.py",
    "agentauth/protocol/errors.py",
    "agentauth/protocol/untrusted_text.py",
)
# Names of functions → the positions of context, text and plural among their arguments.
MARKS: Mapping[str, tuple[int | None, int, int | None]] = {
    "_": (None, 0, None),
    "gettext": (None, 0, None),
    "gettext_lazy": (None, 0, None),
    "gettext_noop": (None, 0, None),
    "ngettext": (None, 0, 1),
    "ngettext_lazy": (None, 0, 1),
    "pgettext": (0, 1, None),
    "pgettext_lazy": (0, 1, None),
    "npgettext": (0, 1, 2),
    "npgettext_lazy": (0, 1, 2),
}
IN_TAG = re.compile(r"\b_\(\"([^\"]+)\"\)")
HEADER = (
    "Content-Type: text/plain; charset=UTF-8\n"
    "Content-Transfer-Encoding: 8bit\n"
    "Language: {language}\n"
    "Plural-Forms: {plural}\n"
)
PLURALS = {"de": "nplurals=2; plural=(n != 1);"}
MAGIC = 0x950412DE


class Message(NamedTuple):
    """A text as gettext looks it up: with its context, if any, and its plural form, if any."""

    text: str
    plural: str = ""
    context: str = ""


Catalogue = dict[Message, tuple[str, ...]]


def collect() -> dict[Message, set[str]]:
    """Every text that people read, and the files that have it."""
    found: dict[Message, set[str]] = {}
    for place, message in [*_in_templates(), *_in_python(), *_names_of_models()]:
        found.setdefault(message, set()).add(place)
    return found


def _in_templates() -> Iterator[tuple[str, Message]]:
    from django.template.loader import get_template
    from django.templatetags.i18n import BlockTranslateNode, TranslateNode

    for path in sorted((ROOT / "templates").rglob("*.html")):
        place = path.relative_to(ROOT).as_posix()
        for text in IN_TAG.findall(path.read_text()):
            yield place, Message(text)
        template: Any = get_template(path.relative_to(ROOT / "templates").as_posix())
        for node in template.template.nodelist.get_nodes_by_type(TranslateNode):
            context = node.message_context.var if node.message_context else ""
            # A variable that holds a text was marked where it got it.
            if isinstance(
                text := getattr(node.filter_expression.var, "literal", node.filter_expression.var),
                str,
            ):
                yield place, Message(text.replace("%%", "%"), context=str(context))
        for node in template.template.nodelist.get_nodes_by_type(BlockTranslateNode):
            context = node.message_context.var if node.message_context else ""
            text, plural = (
                node.render_token_list(each)[0] for each in (node.singular, node.plural)
            )
            yield place, Message(text, plural, str(context))


def _in_python() -> Iterator[tuple[str, Message]]:
    for app in APPS:
        for path in sorted((ROOT / app).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if "/tests/" in place or "/migrations/" in place or "/management/" in place:
                continue
            tree = ast.parse(path.read_text())
            constants = _constants(tree)
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and (message := _marked(node)):
                    yield place, message
                if place.startswith(REFUSING):
                    for sentence in _refusals(node, constants):
                        yield place, Message(sentence)


def _constants(tree: ast.Module) -> dict[str, str]:
    """The texts that the module gives a name."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }


def _marked(call: ast.Call) -> Message | None:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in MARKS:
        return None
    texts = [str(each.value) if isinstance(each, ast.Constant) else "" for each in call.args]
    context, text, plural = ("" if at is None else texts[at] for at in MARKS[name])
    return Message(text, plural, context) if text else None


def _refusals(node: ast.AST, constants: Mapping[str, str]) -> Iterator[str]:
    """The sentences of the errors that this node raises, and the default of an error's class."""
    values: list[ast.expr] = []
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        values = node.args[:1] if name.endswith("Error") else []
    elif isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
        made = (each for each in node.body if isinstance(each, ast.FunctionDef))
        values = [default for each in made for default in each.args.defaults]
    for value in values:
        choices = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
        for each in choices:
            text = _text_of(each, constants)
            if " " in text:
                yield text


def _text_of(value: ast.expr, constants: Mapping[str, str]) -> str:
    """The sentence that an error is made of; of `name: must not …`, what stands after the field."""
    match value:
        case ast.Name(name):
            return constants.get(name, "")
        case ast.JoinedStr([ast.FormattedValue(), ast.Constant(str(text))]):
            return text.removeprefix(": ") if text.startswith(": ") else ""
        case ast.Constant(str(text)):
            return text
    return ""


def _names_of_models() -> Iterator[tuple[str, Message]]:
    """The names of rows, columns and choices, which the control room shows."""
    from django.utils import translation

    from approvals.admin_label_translation import names_of
    from approvals.admin_site import site

    for model in site._registry:
        # Without a language, a name is what the catalogue has it under.
        with translation.override(None):
            names = names_of(model)
        for name in names:
            yield f"{model._meta.app_label} (models)", Message(name)


def read_po(text: str) -> Catalogue:
    """The messages of a file that `write_po` wrote. Raises ValueError for anything else."""
    catalogue: Catalogue = {}
    for block in re.split(r"\n{2,}", text.strip()):
        fields: dict[str, str] = {}
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            name, _, value = line.partition(" ")
            fields[name] = ast.literal_eval(value)
        if not set(fields) <= {"msgctxt", "msgid", "msgid_plural", "msgstr", *_PLURAL}:
            raise ValueError(f"unknown line in: {block}")
        message = Message(
            fields["msgid"], fields.get("msgid_plural", ""), fields.get("msgctxt", "")
        )
        if message in catalogue:
            raise ValueError(f"twice in the catalogue: {message}")
        names = _PLURAL if message.plural else ("msgstr",)
        catalogue[message] = tuple(fields[name] for name in names)
    catalogue.pop(Message(""), None)
    return catalogue


_PLURAL = ("msgstr[0]", "msgstr[1]")


def write_po(language: str, catalogue: Catalogue, places: Mapping[Message, set[str]]) -> str:
    """The catalogue as text, in the order of the files that have its messages."""
    header = HEADER.format(language=language, plural=PLURALS[language])
    blocks = [f'msgid ""\nmsgstr {_literal(header)}']
    for message in sorted(catalogue, key=lambda each: (min(places[each]), each)):
        lines = [f"#: {place}" for place in sorted(places[message])]
        if message.context:
            lines.append(f"msgctxt {_literal(message.context)}")
        lines.append(f"msgid {_literal(message.text)}")
        if message.plural:
            lines.append(f"msgid_plural {_literal(message.plural)}")
        names = _PLURAL if message.plural else ("msgstr",)
        lines += [
            f"{name} {_literal(said)}" for name, said in zip(names, catalogue[message], strict=True)
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def compile_mo(language: str, catalogue: Catalogue) -> bytes:
    """The catalogue in gettext's binary format, without what is not translated."""
    header = HEADER.format(language=language, plural=PLURALS[language])
    entries = {b"": header.encode()}
    for message, said in catalogue.items():
        if all(said):
            key = "\x04".join(filter(None, (message.context, message.text)))
            key += f"\x00{message.plural}" if message.plural else ""
            entries[key.encode()] = "\x00".join(said).encode()
    keys = sorted(entries)
    at = 28 + 16 * len(keys)
    index, texts = [], b""
    for text in [*keys, *(entries[key] for key in keys)]:
        index.append(struct.pack("<II", len(text), at + len(texts)))
        texts += text + b"\x00"
    head = struct.pack("<7I", MAGIC, 0, len(keys), 28, 28 + 8 * len(keys), 0, 0)
    return head + b"".join(index) + texts


def po_of(language: str) -> Path:
    """The file that a translator edits."""
    return LOCALE / language / "LC_MESSAGES" / "django.po"


def main() -> None:
    """Bring each catalogue up to date, and say what is left to translate."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
    import django

    django.setup()
    places = collect()
    for language in PLURALS:
        path = po_of(language)
        path.parent.mkdir(parents=True, exist_ok=True)
        old = read_po(path.read_text()) if path.exists() else {}
        catalogue = {each: old.get(each, ("", "") if each.plural else ("",)) for each in places}
        path.write_text(write_po(language, catalogue, places))
        path.with_suffix(".mo").write_bytes(compile_mo(language, catalogue))
        left = sum(not all(said) for said in catalogue.values())
        sys.stdout.write(f"{path.relative_to(ROOT)}: {len(catalogue)} texts, {left} to translate\n")


if __name__ == "__main__":
    main()
