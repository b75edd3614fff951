"""A service provider that asks verify repeatedly, for revocation tests: `python -m
tests.flows.asking`.

stdin: one line of JSON
{"url","headers","asked":[{"client_id","client_secret","audience","token","pem"}]}, then a line that
ends it. stdout: one line once each token had two yeses; at the end, after two more answers about
each, a JSON list of [token index, begun, was it a yes], in seconds of the machine's monotonic
clock, which all its processes share.
"""

import itertools
import json
import os
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey

EVERY_SECONDS = 0.005
# An answer takes longer than 5 ms, so asking every 5 ms takes several connections in turn.
CONNECTIONS = 4
ACTION = {"type": "read", "resource": "calendar"}
Found = list[tuple[int, float, bool]]


def ask(client: httpx.Client, told: dict[str, Any], signer: LocalSigner) -> bool:
    """Ask once with a fresh proof; only a plain yes counts as one."""
    url = f"{told['audience']}/v1/things"
    proof = make_proof(
        signer,
        method="GET",
        url=url,
        iat=int(time.time()),
        jti=secrets.token_urlsafe(16),
        access_token=told["token"],
    )
    body = {"token": told["token"], "proof": proof, "method": "GET", "url": url, "action": ACTION}
    answer = client.post("/v1/verify", json=body, auth=(told["client_id"], told["client_secret"]))
    return answer.status_code == httpx.codes.OK and answer.json()["valid"] is True


def ask_on(told: dict[str, Any], turn: int, stop: threading.Event, found: Found) -> None:
    """Ask about each token in this connection's turns until told to stop."""
    asked = [
        (each, LocalSigner(PrivateKey.from_pem(each["pem"].encode()))) for each in told["asked"]
    ]
    step = EVERY_SECONDS * CONNECTIONS
    due = time.monotonic() + EVERY_SECONDS * turn
    # Refused credentials count by address, and other tests run on this machine too.
    address = f"127.251.{os.getpid() // 250 % 250}.{1 + os.getpid() % 250}"
    transport = httpx.HTTPTransport(verify=httpx.create_ssl_context(), local_address=address)
    with httpx.Client(
        base_url=told["url"], headers=told["headers"], transport=transport, timeout=30
    ) as client:
        for which in itertools.cycle(range(len(asked))):
            if stop.wait(max(0.0, due - time.monotonic())):
                return
            begun = time.monotonic()
            found.append((which, begun, ask(client, *asked[which])))
            # Do not make up for a slow answer with a burst.
            due = max(due + step, time.monotonic())


def each_twice(tokens: int, which: Iterable[int]) -> bool:
    counted = Counter(which)
    return all(counted[each] >= 2 for each in range(tokens))


def main() -> None:
    told = json.loads(sys.stdin.readline())
    stop, found, tokens = threading.Event(), Found(), len(told["asked"])
    threads = [
        threading.Thread(target=ask_on, args=(told, turn, stop, found))
        for turn in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    while not each_twice(tokens, (which for which, _, yes in list(found) if yes)):
        time.sleep(EVERY_SECONDS)
    print("asking", flush=True)
    sys.stdin.readline()
    ended = time.monotonic()
    while not each_twice(tokens, (which for which, begun, _ in list(found) if begun > ended)):
        time.sleep(EVERY_SECONDS)
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
