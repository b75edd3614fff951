"""Builds the OpenAPI document: paths and callers from the URLconf, the rest from `paths/`."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from django.conf import settings

from agentauth.openapi.endpoint_schemas import ANSWERS
from agentauth.openapi.operation_types import (
    ALWAYS,
    BY_ACCEPT,
    BY_BODY,
    BY_CALLER,
    BY_KEY,
    CALLERS,
    HEADERS,
    JSON,
    PATH_PARAMETERS,
    REFUSALS,
    Operation,
    SuccessResponse,
    status_of,
)
from agentauth.openapi.paths import GROUPS
from agentauth.openapi.value_schemas import SHAPES, Schema, ref
from agentauth.urlconf_endpoints import endpoints

VERSION: Final = "1"
_DESCRIPTION: Final = (
    "docs/protocol.md describes the wire contract in words; section numbers refer to it. Every "
    "body is strict JSON of at most 65,536 bytes. A member or parameter that is not described "
    "here is refused with 400 `invalid_request`. Clients ignore members of answers that they do "
    "not know. A path with percent-encoding is answered with 404."
)
_BY_STATUS: Final = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}
_DESCRIBED: Final = ("/v1/", "/.well-known/")
_CALLER_OF: Final = {
    "AgentProofAuthentication": "proof",
    "GrantProofAuthentication": "proof",
    "ServiceProviderAuthentication": "basic",
    "SessionAuthentication": "session",
}


@lru_cache(maxsize=1)
def openapi() -> dict[str, Any]:
    """The document, which is cached and shared: do not change it."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "AgentAuth", "version": VERSION, "description": _DESCRIPTION},
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "servers": [{"url": settings.PUBLIC_URL}],
        "tags": [{"name": name, "description": text} for name, (text, _) in GROUPS.items()],
        "paths": _paths(),
        "components": {
            "schemas": {**SHAPES, **ANSWERS},
            "securitySchemes": dict(CALLERS),
            "headers": dict(HEADERS),
        },
    }


def routes() -> dict[str, Any]:
    """Each `METHOD /path` the URLconf serves under /v1/ and /.well-known/, with its view class."""
    return {
        f"{method} {endpoint.path}": endpoint.view
        for endpoint in endpoints()
        if endpoint.path.startswith(_DESCRIBED)
        # Of a function, which has no description, the methods are unknown.
        for method in endpoint.methods or {"GET"}
    }


def _paths() -> dict[str, Any]:
    served = routes()
    paths: dict[str, Any] = {}
    for tag, (_, operations) in GROUPS.items():
        for key, operation in operations.items():
            method, path = key.split(" ")
            paths.setdefault(path, {})[method.lower()] = _operation(
                tag, path, operation, served[key]
            )
    return paths


def callers(operation: Operation, view: Any) -> Sequence[str]:
    """Who may call, by the names of the security schemes; empty if public."""
    if operation.callers or view is None:
        return operation.callers
    return [_CALLER_OF[each.__name__] for each in view.authentication_classes]


def _operation(tag: str, path: str, operation: Operation, view: Any) -> dict[str, Any]:
    who = callers(operation, view)
    described: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [tag],
        "summary": operation.summary,
        "description": operation.description,
        "security": [{name: []} for name in who],
        "parameters": _parameters(path, operation),
        "responses": _responses(operation, who, getattr(view, "proof_error_status", 401)),
    }
    if operation.body:
        content = {
            operation.body.media_type: {
                "schema": ref(operation.body.schema),
                "example": operation.body.example,
            }
        }
        described["requestBody"] = {"required": True, "content": content}
    return described


def _parameters(path: str, operation: Operation) -> list[dict[str, Any]]:
    found = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_PARAMETERS[name][0],
            "schema": {"type": "string", "pattern": f"^{PATH_PARAMETERS[name][2]}$"},
            "example": PATH_PARAMETERS[name][1],
        }
        for name in re.findall(r"\{([a-z_]+)\}", path)
    ]
    found += [
        {
            "name": name,
            "in": "query",
            "required": name in operation.required,
            "description": schema.get("description", ""),
            "schema": _bare(schema),
        }
        for name, schema in operation.query.items()
    ]
    if operation.keyed:
        found.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": (
                    "Names the operation, so that a call whose answer was lost can be retried "
                    "(sections 0 and 8)."
                ),
                "schema": {"type": "string", "pattern": "^[!-+\\--~]{1,255}$"},
            }
        )
    return found


def _bare(schema: Schema) -> Schema:
    return {name: value for name, value in schema.items() if name != "description"}


def _responses(operation: Operation, who: Sequence[str], proof_error_status: int) -> dict[str, Any]:
    # A nonce may come along with every answer to a proof.
    nonce = ("DPoP-Nonce",) if "proof" in who else ()
    found = {str(status): _answer(answer, nonce) for status, answer in operation.answers.items()}
    for status, codes in sorted(refusals(operation, who, proof_error_status).items()):
        later = ("Retry-After",) if "not_yet_logged" in codes else ()
        found[str(status)] = _refusal(codes, [*nonce, *_BY_STATUS.get(status, ()), *later])
    return found


def refusals(
    operation: Operation, who: Sequence[str], proof_error_status: int = 401
) -> Mapping[int, Sequence[str]]:
    """Codes by status: the operation's own, and those that follow from caller, body and key."""
    codes = [*operation.errors, *(code for name in who for code in BY_CALLER[name]), *ALWAYS]
    # A keyed operation changes something; without a body of its own it takes an empty object.
    codes += BY_BODY if operation.body or operation.keyed else ()
    codes += BY_KEY if operation.keyed else ()
    codes += (
        BY_ACCEPT if all(answer.media_type == JSON for answer in operation.answers.values()) else ()
    )
    found: dict[int, list[str]] = {}
    # In the order of the table, each once.
    for code in (each for each in REFUSALS if each in codes):
        found.setdefault(status_of(code, proof_error_status), []).append(code)
    return found


def _headers(names: Sequence[str]) -> dict[str, Any]:
    return {
        name: {"$ref": f"#/components/headers/{name}"}
        for name in ("X-Request-Id", "Cache-Control", *names)
    }


def _answer(answer: SuccessResponse, headers: Sequence[str]) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.description, "headers": _headers(headers)}
    if answer.schema:
        content: dict[str, Any] = {"schema": ref(answer.schema)}
        if answer.example is not None:
            content["example"] = answer.example
        described["content"] = {answer.media_type: content}
    return described


def _refusal(codes: Sequence[str], headers: Sequence[str]) -> dict[str, Any]:
    schema = {"allOf": [ref("Error"), {"properties": {"error": {"enum": list(codes)}}}]}
    examples = {code: {"value": example_of(code)} for code in codes}
    return {
        "description": "; ".join(f"`{code}`: {REFUSALS[code].when}" for code in codes) + ".",
        "headers": _headers(headers),
        "content": {JSON: {"schema": schema, "examples": examples}},
    }


def example_of(code: str) -> dict[str, Any]:
    """The body of a refusal with this code."""
    refusal = REFUSALS[code]
    return {"error": code, "error_description": refusal.sentence, **refusal.more}
