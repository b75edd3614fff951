"""The template context of the API page (`/docs/`), built from the OpenAPI document.

Rows and sentences for each schema. It adds nothing to the document.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from agentauth.openapi.document import openapi
from agentauth.openapi.operation_types import FORM, REFUSALS
from agentauth.openapi.paths import OPERATIONS
from agentauth.openapi.value_schemas import Schema

_CODE: Final = re.compile(r"`([^`]+)`")
_SHOWN_VALUES: Final = 8
# A signed object in full is several screens wide on a phone; the document has all of it.
_SHOWN_CHARACTERS: Final = 72
_LINE: Final = 58
_REFUSED: Final = "400"
WHO: Final[Mapping[str, str]] = {
    "proof": "Agent, by DPoP proof",
    "basic": "Service provider, by client id and secret",
    "session": "Human, by session",
}
_NOTHING: Final = SafeString("")


@dataclass(frozen=True, slots=True)
class Row:
    """One member or parameter."""

    name: str
    kind: SafeString
    note: SafeString
    required: bool
    # For a parameter: path, query or header.
    place: str = ""


@dataclass(frozen=True, slots=True)
class Type:
    """One named schema: its rows, in several `forms` if it has them, or else its kind of value."""

    name: str
    note: SafeString
    kind: SafeString
    forms: Sequence[tuple[SafeString, Sequence[Row]]]


@dataclass(frozen=True, slots=True)
class Content:
    """What a body or an answer holds; `rows` are a body's members."""

    kind: SafeString
    media_type: str
    example: str
    rows: Sequence[Row] = ()


@dataclass(frozen=True, slots=True)
class Success:
    status: str
    note: SafeString
    content: Content | None


@dataclass(frozen=True, slots=True)
class Shown:
    """One operation."""

    anchor: str
    method: str
    path: str
    summary: str
    note: SafeString
    who: Sequence[str]
    parameters: Sequence[Row]
    body: Content | None
    successes: Sequence[Success]
    # Each is status, code, and when it is given.
    refusals: Sequence[tuple[str, str, SafeString]]


@dataclass(frozen=True, slots=True)
class Group:
    anchor: str
    name: str
    note: str
    operations: Sequence[Shown]


@lru_cache(maxsize=1)
def groups() -> Sequence[Group]:
    """The operations by their tags."""
    document = openapi()
    shown: dict[str, list[Shown]] = {tag["name"]: [] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            shown[operation["tags"][0]].append(_operation(method, path, operation))
    return [
        Group(f"group-{tag['name'].lower()}", tag["name"], tag["description"], shown[tag["name"]])
        for tag in document["tags"]
    ]


@lru_cache(maxsize=1)
def types() -> Sequence[Type]:
    """The named schemas except request bodies, which are shown with their operation."""
    bodies = {each.body.schema for each in OPERATIONS.values() if each.body}
    schemas = sorted(openapi()["components"]["schemas"].items())
    return [_type(name, schema) for name, schema in schemas if name not in bodies]


@lru_cache(maxsize=1)
def errors() -> Sequence[tuple[str, SafeString, str]]:
    """Every code, when it is given, and its sentence."""
    return [(code, prose(refusal.when), refusal.sentence) for code, refusal in REFUSALS.items()]


def prose(text: str) -> SafeString:
    """Plain text with its `backticks` as code."""
    return mark_safe(_CODE.sub(r"<code>\1</code>", escape(text)))  # noqa: S308 — escaped here


def pretty(example: Any) -> str:
    """An example for readers: indented, with long texts cut."""
    if isinstance(example, str):
        return _cut(example)
    return _laid_out(_shortened(example))


def _laid_out(value: Any, indent: str = "") -> str:
    """JSON in which what fits on one line stands on one."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or len(flat) + len(indent) <= _LINE:
        return flat
    deeper = indent + "  "
    if isinstance(value, list):
        inner, ends = [_laid_out(each, deeper) for each in value], "[]"
    else:
        inner = [f"{json.dumps(name)}: {_laid_out(each, deeper)}" for name, each in value.items()]
        ends = "{}"
    return f"{ends[0]}\n{deeper}" + f",\n{deeper}".join(inner) + f"\n{indent}{ends[1]}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:24]}…{text[-12:]}"


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    return _cut(value) if isinstance(value, str) else value


def _operation(method: str, path: str, operation: dict[str, Any]) -> Shown:
    parameters = [
        Row(
            each["name"],
            kind(each["schema"]),
            prose(each["description"]),
            each.get("required", False),
            each["in"],
        )
        for each in operation["parameters"]
    ]
    responses = operation["responses"]
    return Shown(
        anchor=operation["operationId"].replace("_", "-"),
        method=method.upper(),
        path=path,
        summary=operation["summary"],
        note=prose(operation["description"]),
        who=[WHO[name] for each in operation["security"] for name in each],
        parameters=parameters,
        body=_body(operation),
        successes=_successes(responses),
        refusals=[
            (status, code, prose(REFUSALS[code].when))
            for status, each in responses.items()
            if status >= _REFUSED
            for code in each["content"]["application/json"]["examples"]
        ],
    )


def _body(operation: dict[str, Any]) -> Content | None:
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        rows = list(_rows(openapi()["components"]["schemas"][_named(content["schema"])]))
        return replace(_content(media_type, content), rows=rows)
    return None


def _successes(responses: dict[str, Any]) -> list[Success]:
    found: list[Success] = []
    for status, answer in responses.items():
        if status < _REFUSED:
            content = next((_content(*each) for each in answer.get("content", {}).items()), None)
            if content and any(content == other.content for other in found):
                # Show it once: a repeated example would look like a difference.
                content = replace(content, example="")
            found.append(Success(status, prose(answer["description"]), content))
    return found


def _content(media_type: str, content: dict[str, Any]) -> Content:
    example = content.get("example")
    if media_type == FORM and example:
        example = "&".join(f"{name}={_cut(value)}" for name, value in example.items())
    return Content(kind(content["schema"]), media_type, "" if example is None else pretty(example))


def _named(schema: Schema) -> str:
    return str(schema["$ref"]).rsplit("/", 1)[1]


def kind(schema: Schema) -> SafeString:
    """The kind of value in a few words, with links to named schemas."""
    if "$ref" in schema:
        name = _named(schema)
        return format_html('<a href="#type-{}">{}</a>', name, name)
    if "allOf" in schema:
        # The first is the named schema; the others only narrow it.
        return kind(schema["allOf"][0])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return _joined(" or ", [kind(each) for each in schema[several]])
    if "const" in schema:
        return format_html("<code>{}</code>", json.dumps(schema["const"]))
    if "enum" in schema:
        return _values(schema["enum"])
    named = {"array": _list, "integer": _integer, "string": _text}
    return named.get(schema.get("type", ""), _other)(schema)


def _other(schema: Schema) -> SafeString:
    if schema.get("additionalProperties"):
        return format_html("object of {}", kind(schema["additionalProperties"]))
    words = {"object": "object", "null": "null", "boolean": "true or false"}
    return SafeString(words.get(schema.get("type", ""), "any JSON"))


def _values(values: Sequence[str]) -> SafeString:
    shown = values if len(values) <= _SHOWN_VALUES else values[:3]
    listed = _joined(", ", [format_html("<code>{}</code>", value) for value in shown])
    return (
        listed
        if len(shown) == len(values)
        else format_html("{} … ({} in all)", listed, len(values))
    )


def _list(schema: Schema) -> SafeString:
    low, high = schema.get("minItems"), schema.get("maxItems")
    several = (
        f", {low} to {high}" if low and high else f", at most {high}" if high is not None else ""
    )
    return format_html("list of {}{}", kind(schema["items"]), several)


def _integer(schema: Schema) -> SafeString:
    low, high = schema["minimum"], schema["maximum"]
    beyond = high >= 2**53 - 1
    return SafeString(
        "integer"
        if beyond and low < 0
        else f"integer, {low} or more"
        if beyond
        else f"integer, {low} to {high}"
    )


def _text(schema: Schema) -> SafeString:
    base = {"uri": "URL", "uuid": "UUID", "date-time": "time"}.get(schema.get("format", ""), "text")
    longest = schema.get("maxLength")
    return SafeString(base if longest is None else f"{base}, at most {longest} characters")


def _joined(glue: str, parts: Sequence[SafeString]) -> SafeString:
    return format_html_join(glue, "{}", ((part,) for part in parts))


def _type(name: str, schema: Schema) -> Type:
    variants = schema.get("oneOf", [schema])
    forms = [_form(each) for each in variants if each.get("properties")]
    return Type(
        name, prose(schema.get("description", "")), _NOTHING if forms else kind(schema), forms
    )


def _form(schema: Schema) -> tuple[SafeString, list[Row]]:
    """The rows, titled with the values of `type` if those tell one form from another."""
    values = schema["properties"].get("type", {}).get("enum", [])
    title = format_html("<code>type</code> {}", _values(values)) if values else _NOTHING
    return title, [row for row in _rows(schema) if not values or row.name != "type"]


def _rows(schema: Schema, prefix: str = "") -> Iterator[Row]:
    """A row for each member; members of unnamed objects have a dotted name."""
    for name, member in schema["properties"].items():
        required = name in schema.get("required", ())
        inner, place = member, prefix + name
        while inner.get("type") == "array":
            inner, place = inner["items"], f"{place}[]"
        bare = next((each for each in inner.get("anyOf", []) if each.get("properties")), inner)
        yield Row(prefix + name, kind(member), prose(member.get("description", "")), required)
        if bare.get("properties"):
            yield from _rows(bare, f"{place}.")
