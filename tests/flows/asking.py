"""A service provider's process that asks verify again and again: `python -m tests.flows.asking`, for the tests of revocation.

stdin: one line of JSON {"url","client_id","client_secret","audience","token","pem"}; it goes on until a second line comes.
stdout: one line once the first answer was a yes; at the end a JSON list of [begun, was it a yes], in seconds of the machine's
monotonic clock, which all its processes share.
"""

import json
import secrets
import sys
import threading
import time
from typing import Any

import httpx

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey

EVERY_SECONDS = 0.005
# One connection cannot ask every 5 ms, since an answer takes longer: several take turns.
CONNECTIONS = 4
ACTION = {"type": "read", "resource": "calendar"}


def ask(client: httpx.Client, told: dict[str, Any], signer: LocalSigner) -> bool:
    """One question with a fresh proof; whatever is not a plain yes is none."""
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
    answer = client.post("/v1/verify", json=body)
    return answer.status_code == httpx.codes.OK and answer.json()["valid"] is True


def ask_on(told: dict[str, Any], turn: int, stop: threading.Event, found: list[tuple[float, bool]]) -> None:
    """Ask in this connection's turns until told to stop."""
    signer = LocalSigner(PrivateKey.from_pem(told["pem"].encode()))
    auth = (told["client_id"], told["client_secret"])
    step = EVERY_SECONDS * CONNECTIONS
    due = time.monotonic() + EVERY_SECONDS * turn
    with httpx.Client(base_url=told["url"], auth=auth, timeout=30) as client:
        while not stop.wait(max(0.0, due - time.monotonic())):
            begun = time.monotonic()
            found.append((begun, ask(client, told, signer)))
            # A slow answer is not made up for by a burst.
            due = max(due + step, time.monotonic())


def main() -> None:
    told = json.loads(sys.stdin.readline())
    stop, found = threading.Event(), list[tuple[float, bool]]()
    threads = [threading.Thread(target=ask_on, args=(told, turn, stop, found)) for turn in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    while not any(yes for _, yes in list(found)):
        time.sleep(EVERY_SECONDS)
    print("asking", flush=True)
    sys.stdin.readline()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(sorted(found)))


if __name__ == "__main__":
    main()
