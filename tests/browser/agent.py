"""One SDK call of an agent, in a thread of its own: Playwright's event loop runs in the test's."""

import asyncio
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agentauth import AgentAuthClient
from agentauth.protocol.capability import parse_capability


def call(url: str, key_file: Path, name: str, what: str, *arguments: Any) -> dict[str, Any]:
    """The answer as the fields of the SDK's result, with JSON's types."""

    async def act() -> Any:
        client = AgentAuthClient(url, key_file=key_file, name=name)
        if what == "request":
            service_provider, capabilities, envelope, reason = arguments
            asked = [parse_capability(each) for each in capabilities]
            return await client.request_grant(service_provider, asked, envelope, reason)
        if what == "withdraw":
            return await client.withdraw_grant(arguments[0])
        return await client.get_grant(arguments[0])

    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(lambda: asyncio.run(act())).result()
    found: dict[str, Any] = json.loads(
        json.dumps(dataclasses.asdict(answer) if answer else {}, default=str)
    )
    return found
