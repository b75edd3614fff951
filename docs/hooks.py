"""What `mkdocs build` adds to the pages of this folder: reference pages, decisions, links.

- `reference/*.md`: a page for each list of `OBJECTS`, which mkdocstrings fills from docstrings, and
  `reference/http-api.md`, from the description that a running registry serves at `/v1/schema/`.
- `docs/adr`, `docs/runbook`: one entry of the navigation for each page.
- Links to files of the repository that are not on the site become their paths.
"""

import os
import re
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Page → title, and what it describes.
OBJECTS: Final = {
    "agent": (
        "The agent's client",
        [
            "agentauth.sdk.client.AgentAuthClient",
            "agentauth.sdk.sync_client.SyncAgentAuthClient",
            "agentauth.sdk.httpx_auth",
            "agentauth.sdk.requests_auth",
            "agentauth.sdk.link_display",
            "agentauth.sdk.registry_answers",
        ],
    ),
    "keys": (
        "Key stores",
        [
            "agentauth.sdk.key_file",
            "agentauth.sdk.key_store",
            "agentauth.sdk.keyring_store",
            "agentauth.sdk.kms_signer",
            "agentauth.sdk.identity",
        ],
    ),
    "values": (
        "Capabilities, actions, money",
        [
            "agentauth.protocol.capability.Capability",
            "agentauth.protocol.capability.Action",
            "agentauth.protocol.money.Money",
            "agentauth.protocol.behavioural_envelope.Envelope",
        ],
    ),
    "service-provider": (
        "The service provider's client",
        [
            "agentauth.sdk.verifier",
            "agentauth.sdk.async_verifier",
            "agentauth.sdk.verifier_core",
            "agentauth.sdk.refusal_responses",
        ],
    ),
    "integrations": (
        "Integrations",
        [
            "agentauth.integrations.requirement",
            "agentauth.integrations.agent_tool",
            "agentauth.integrations.provider_settings",
            "agentauth.integrations.incoming_request",
            "agentauth.integrations.django",
            "agentauth.integrations.drf",
            "agentauth.integrations.asgi",
            "agentauth.integrations.starlette",
            "agentauth.integrations.fastapi",
            "agentauth.integrations.flask",
            "agentauth.integrations.forward_auth",
        ],
    ),
    "mcp": (
        "MCP",
        [
            "agentauth.mcp.options",
            "agentauth.mcp.server",
            "agentauth.mcp.protect",
            "agentauth.mcp.tool_action",
            "agentauth.mcp.signing",
        ],
    ),
    "auditor": (
        "The auditor's client",
        ["agentauth.sdk.log_client", "agentauth.sdk.offline_receipt_check"],
    ),
    "errors": ("Errors", ["agentauth.sdk.errors", "agentauth.protocol.errors"]),
}
_HTTP_API: Final = "reference/http-api.md"
_LINK: Final = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)")
_FENCE: Final = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages, the runbook and the decisions into the navigation."""
    sections = {name: pages for entry in config.nav or [] for name, pages in entry.items()}
    sections["Reference"] += [{"HTTP API": _HTTP_API}]
    sections["Reference"] += [
        {"Python": [{title: f"reference/{name}.md"} for name, (title, _) in OBJECTS.items()]}
    ]
    sections["How-to"] += [{"Runbook": _pages(config, "runbook")}]
    sections["Explanation"] += [{"Decisions": _pages(config, "adr")}]
    return config


def _pages(config: MkDocsConfig, folder: str) -> list[str]:
    return sorted(f"{folder}/{path.name}" for path in Path(config.docs_dir, folder).glob("*.md"))


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, (title, objects) in OBJECTS.items():
        blocks = "\n\n".join(f"::: {each}" for each in objects)
        files.append(
            File.generated(config, f"reference/{name}.md", content=f"# {title}\n\n{blocks}\n")
        )
    files.append(File.generated(config, _HTTP_API, content=http_api()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace each link to what is not on the site by the path in the repository."""
    fences = [match.span() for match in _FENCE.finditer(markdown)]
    here = PurePosixPath(page.file.src_uri).parent

    def shown(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        name = target.partition("#")[0]
        inside = any(start <= match.start() < end for start, end in fences)
        if picture or inside or not name or "://" in name or name.startswith("mailto:"):
            return match[0]
        path = os.path.normpath(here / name)
        if files.get_file_from_path(path) is not None:
            return match[0]
        if Path(config.docs_dir, path).is_dir():
            return f"{text} (in the navigation)"
        place = os.path.normpath(PurePosixPath("docs") / path)
        told = f"`{place}` in the repository"
        return told if text == place else f"{text} ({told})"

    return _LINK.sub(shown, markdown)


def http_api() -> str:
    """A page with each operation of the registry: caller, parameters, answers."""
    document = _openapi()
    lines = [
        "# HTTP API",
        "",
        (
            "Generated from the description that a running registry serves in OpenAPI 3.1 at "
            "`/v1/schema/`, and shows with examples at `/docs/`. [The protocol](../protocol.md) "
            "describes the same in words."
        ),
    ]
    names = {tag["name"]: tag["description"] for tag in document["tags"]}
    for tag, about in names.items():
        lines += ["", f"## {tag.capitalize()}", "", about]
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag in operation["tags"]:
                    lines += _operation(method.upper(), path, operation)
    return "\n".join(lines) + "\n"


def _operation(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"### {method} {path} {{: #{operation['operationId']} }}",
        "",
        operation["summary"],
    ]
    if operation.get("description"):
        lines += ["", operation["description"]]
    callers = [name for each in operation["security"] for name in each]
    lines += ["", f"Caller: {', '.join(callers) or 'anyone'}."]
    if operation["parameters"]:
        lines += ["", "| parameter | in | required |", "|---|---|---|"]
        for each in operation["parameters"]:
            required = "yes" if each.get("required") else ""
            lines.append(f"| `{each['name']}` | {each['in']} | {required} |")
    lines += ["", "| status | meaning |", "|---|---|"]
    for status, answer in operation["responses"].items():
        lines.append(f"| {status} | {_cell(answer['description'])} |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _openapi() -> dict[str, Any]:
    """The document of the server's own code, with the settings of a checkout."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
    os.environ.setdefault("SECRET_KEY", "only-for-the-documentation-0123456789-abcdefghijklmnop")
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("VAR_DIR", folder)
        import django

        django.setup()
        from agentauth.openapi.document import openapi

        return openapi()
