"""Users and agents at the registry during the faults: approvals, confirmations and tokens.

Acknowledged acts are recorded; where the outcome is unknown, they look it up and try again.
"""

import base64
import contextlib
import json
import threading
import uuid

import httpx

from tests.actors import LivePerson, Scene
from tests.faults.clients import Agent, Load, Log

# A page that is late or unexpected, or an answer that was lost.
TROUBLE = (httpx.HTTPError, AssertionError)
# A user does one thing at a time.
PARALLEL = threading.Lock()


def listen(log: Log, person: LivePerson) -> None:
    """Record the status of every page, even if the test code then only finds it unexpected."""
    person.http.event_hooks["response"] = [log.keep]


def approves(load: Load, person: LivePerson, pending: list[Scene]) -> None:
    """Approve one grant after the other, and get the first token of each at once."""
    for place in pending:
        while load.pause(1):
            if _approved(person, place.grant_id):
                load.log.approved.add(place.grant_id)
                break
            if _is_decided(load, place):
                break
        while load.pause(0.2) and _token(load, place) is None:
            pass


def withdraws(pending: list[Scene]) -> None:
    """Withdraw undecided requests, which count towards the user's limit in later scenarios."""
    for place in pending:
        answer = place.api("POST", f"/v1/grants/{place.grant_id}/withdraw", {})
        assert answer.status_code in {204, 409}, answer.text


def _approved(person: LivePerson, grant_id: str) -> bool:
    try:
        with PARALLEL:
            return person.decide(grant_id, person.sign(grant_id)).status_code == 200
    except TROUBLE:
        return False


def _is_decided(load: Load, place: Scene) -> bool:
    """Whether the decision was made and only its answer lost."""
    try:
        answer = place.api("GET", f"/v1/grants/{place.grant_id}")
    except httpx.HTTPError:
        return False
    load.log.keep(answer)
    return answer.status_code == 200 and answer.json()["status"] != "pending"


def confirms(load: Load, person: LivePerson, agent: Agent) -> None:
    """Payments that need a confirmation, from the first question to the verifier's yes, in turn."""
    while load.pause(0.5):
        key = str(uuid.uuid4())
        while load.pause(0.2):
            answer = load.call(agent, load.rng.choice(["a", "b", "drf"]), key)
            if answer.yes:
                break
            if answer.body.get("reason") == "confirm_above":
                with PARALLEL, contextlib.suppress(*TROUBLE):
                    person.confirm(answer.body["confirmation_id"])


def renews(load: Load, agents: list[Agent]) -> None:
    """Get new tokens, which the agents use from then on."""
    while load.pause(load.rng.expovariate(1.5)):
        agent = load.rng.choice(agents)
        agent.token = _token(load, agent.place) or agent.token


def _token(load: Load, place: Scene) -> str | None:
    try:
        answer = place.api("POST", "/v1/tokens", {"grant_id": place.grant_id})
    except httpx.HTTPError:
        return None
    load.log.keep(answer)
    if answer.status_code != 201:
        return None
    token = str(answer.json()["access_token"])
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    load.log.tokens.add(claims["jti"])
    return token
