"""The demo service's own words for what it does, and how a service publishes such words.

People read them after the registry's sentences, once an administrator has signed for this version.
"""

from collections.abc import Mapping
from typing import Any, Final

import httpx

from agentauth.sdk.registry_http import ssl_context
from agentauth.sdk.url_checks import is_loopback
from examples.demo.printing import say

WORDS: Final[Mapping[str, Any]] = {
    "actions": {
        "read:calendar": {
            "label": "Look at your appointments",
            "sentence": "Shows your appointments in {resource}.",
            "icon": "calendar",
        },
        "read:files": {
            "label": "Open your files",
            "sentence": "Opens files in {resource}.",
            "icon": "document",
        },
        "write:files": {
            "label": "Save files",
            "sentence": "Saves files in {resource}.",
            "icon": "folder",
            "arguments": {"size": {"label": "File size", "format": "bytes"}},
        },
        "transact:payments": {
            "label": "Pay invoices",
            "sentence": "Pays a supplier {amount} from {resource}.",
            "icon": "money",
            "arguments": {"payee": {"label": "Supplier", "format": "text"}},
        },
    },
    "resources": {
        "calendar": {"label": "your calendar"},
        "files": {"label": "your files"},
        "payments": {"label": "your current account"},
    },
}


def publish_words(credentials: Mapping[str, str]) -> None:
    """Propose WORDS at the registry, with the service's credentials, and print what follows.

    The same words again change nothing. Without approved words the demo goes on as before.
    """
    url = credentials["registry_url"]
    try:
        answer = httpx.post(
            f"{url}/v1/catalogue",
            json={"catalogue": WORDS},
            auth=(credentials["client_id"], credentials["client_secret"]),
            verify=ssl_context(),
            trust_env=not is_loopback(url),
            timeout=15,
        )
        version = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        say(f"The registry did not take the service's own words: {error}")
        return
    if version["status"] == "approved":
        return
    say(
        "The service describes its actions in its own words. Each version waits for an "
        "administrator's passkey; at a registry of `make run` that is you."
    )
    say(f"Read and approve them here, or go on without: {version['approval_url']}")
