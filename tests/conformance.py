"""Checks an HTTP answer against the API description: status, media type, schema, no extras."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jsonschema_rs import Draft202012Validator

from agentauth.openapi.document import openapi

# `DPoP-Nonce` is sent only when a new nonce is due.
ALWAYS = {"X-Request-Id", "Cache-Control", "Retry-After", "WWW-Authenticate"}
NOT_FOUND = 404


def closed(schema: Any) -> Any:
    """The schema with every object closed: answers may gain members, but only declared ones."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {name: closed(value) for name, value in schema.items()}
    if shut.get("type") == "object" and "properties" in shut:
        shut.setdefault("additionalProperties", False)
    return shut


@lru_cache(maxsize=1)
def _components() -> Any:
    return {"schemas": closed(openapi()["components"]["schemas"])}


@lru_cache(maxsize=256)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(
        {**json.loads(schema), "components": _components()}, validate_formats=True
    )


def faults(value: Any, schema: Mapping[str, Any]) -> list[str]:
    """What is wrong with `value` under the schema, one line each."""
    found = _validator(json.dumps(closed(dict(schema)), sort_keys=True)).iter_errors(value)
    return [f"{list(fault.instance_path)}: {fault.message}" for fault in found]


@lru_cache(maxsize=1)
def _paths() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    """Exact paths first: `/v1/agents/me` is not an id. Only the name of a tile contains slashes."""
    paths = sorted(openapi()["paths"].items(), key=lambda item: item[0].count("{"))
    patterns = [re.sub(r"\{[a-z_]+\}", "[^/]+", path.replace("{tile}", ".+")) for path, _ in paths]
    return [
        (re.compile(pattern), methods)
        for pattern, (_, methods) in zip(patterns, paths, strict=True)
    ]


def described(method: str, path: str) -> dict[str, Any] | None:
    """The operation of this request, if the description has it."""
    for pattern, methods in _paths():
        if pattern.fullmatch(path):
            found: dict[str, Any] | None = methods.get(method.lower())
            return found
    return None


def check(method: str, path: str, status: int, headers: Mapping[str, str], content: bytes) -> None:
    """Assert that the answer is one the description declares; undescribed operations are checked
    elsewhere.

    `headers` are looked up case-insensitively.
    """
    operation = described(method, path)
    if operation is None:
        return
    place = f"{method} {path} {status} {content[:300]!r}"
    answer = operation["responses"].get(str(status))
    assert answer, f"an undocumented status: {place}"
    expected = set(answer["headers"]) & ALWAYS
    if status == NOT_FOUND and b'"not_yet_logged"' not in content:
        expected.discard("Retry-After")
    lacking = {name for name in expected if name not in headers}
    assert not lacking, f"without {lacking}: {place}"
    media = answer.get("content", {})
    if not media:
        assert content == b"", f"an undocumented body: {place}"
        return
    given = headers["Content-Type"].split(";")[0]
    assert given in media, f"an undocumented media type {given}: {place}"
    if given == "application/json":
        assert not (wrong := faults(json.loads(content), media[given]["schema"])), (
            f"{wrong}: {place}"
        )
