"""One SDK call of an agent: `python -m tests.browser.agent URL KEY_FILE NAME JSON`. Prints JSON."""

import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from agentauth import AgentAuthClient
from agentauth.protocol.capability import parse_capability


async def act(client: AgentAuthClient, what: str, *arguments: Any) -> Any:
    if what == "request":
        service_provider, capabilities, envelope, reason = arguments
        asked = [parse_capability(each) for each in capabilities]
        return await client.request_grant(service_provider, asked, envelope, reason)
    if what == "withdraw":
        return await client.withdraw_grant(arguments[0])
    return await client.get_grant(arguments[0])


if __name__ == "__main__":
    url, key_file, name, call = sys.argv[1:]
    answer = asyncio.run(
        act(AgentAuthClient(url, key_file=Path(key_file), name=name), *json.loads(call))
    )
    print(json.dumps(dataclasses.asdict(answer) if answer else {}, default=str))
