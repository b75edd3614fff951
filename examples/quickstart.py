"""The shortest agent. Run it twice: the first run asks a human, the second one is allowed to call.

.venv/bin/python -m examples.quickstart http://localhost:8000 demo-service GET /calendar/work
"""

import asyncio
import sys

from agentauth import AgentAuthClient, Capability
from agentauth.sdk import GrantPendingError


async def main(registry_url: str, service_provider: str, method: str, path: str) -> None:
    client = AgentAuthClient(registry_url)
    await client.request_grant(
        service_provider_id=service_provider,
        capabilities=[Capability.read("calendar")],
    )
    try:
        headers = await client.authenticate_headers(service_provider, method, path)
    except GrantPendingError as pending:
        print(f"A human must approve this first: {pending.approval_url}")
        if pending.claim_code:
            print(f"The page asks for this code: {pending.claim_code}")
        return
    # Valid for one minute and one request.
    for name, value in headers.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
