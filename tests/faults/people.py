"""What humans and agents do at the registry while the faults happen: a human approves and says yes to payments, agents ask for
tokens. What is acknowledged is written down; what is not known to have happened is looked at, and tried again.
"""

import base64
import contextlib
import json
import threading
import uuid

import httpx

from tests.actors import LivePerson, Scene
from tests.faults.clients import Agent, Load, Log

# A page that is not there in time, or is another than was expected, and an answer that was lost.
TROUBLE = (httpx.HTTPError, AssertionError)
# One human has one pair of hands.
HANDS = threading.Lock()


def listen(log: Log, person: LivePerson) -> None:
    """Keep what each page answers from now on, also one that its reader only finds unexpected."""
    person.http.event_hooks["response"] = [log.keep]


def approves(load: Load, person: LivePerson, pending: list[Scene]) -> None:
    """One grant after the other; the first token of each follows at once."""
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
    """What nobody came to decide: else it counts among what may wait for the human, in every scenario that follows."""
    for place in pending:
        answer = place.api("POST", f"/v1/grants/{place.grant_id}/withdraw", {})
        assert answer.status_code in {204, 409}, answer.text


def _approved(person: LivePerson, grant_id: str) -> bool:
    try:
        with HANDS:
            return person.decide(grant_id, person.sign(grant_id)).status_code == 200
    except TROUBLE:
        return False


def _is_decided(load: Load, place: Scene) -> bool:
    """Whether an answer was lost, and not the decision."""
    try:
        answer = place.api("GET", f"/v1/grants/{place.grant_id}")
    except httpx.HTTPError:
        return False
    load.log.keep(answer)
    return answer.status_code == 200 and answer.json()["status"] != "pending"


def confirms(load: Load, person: LivePerson, agent: Agent) -> None:
    """A payment that needs a human's yes, from the first question to the yes of the verifier, and then the next one."""
    while load.pause(0.5):
        key = str(uuid.uuid4())
        while load.pause(0.2):
            answer = load.call(agent, load.rng.choice(["a", "b", "drf"]), key)
            if answer.yes:
                break
            if answer.body.get("reason") == "confirm_above":
                with HANDS, contextlib.suppress(*TROUBLE):
                    person.confirm(answer.body["confirmation_id"])


def renews(load: Load, agents: list[Agent]) -> None:
    """New tokens, used from then on."""
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
