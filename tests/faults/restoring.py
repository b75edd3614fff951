"""What restores are tested on: a stage with an external store, a backup, and later events."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import httpx

from tests import postgres, redis_servers
from tests.actors import LivePerson, Scene, scenes
from tests.faults.cast import budget, token_of
from tests.faults.clients import PAY, READ, question_of
from tests.faults.stage import Stage
from tests.live import ROOT, LiveRegistry, run_in_django
from tests.waiting import SETTLE_SECONDS, until

ADMIN = "admin@example.org"
PAGE = ROOT / "docs/restore.md"


class RestoreStage(Stage):
    """A stage with AUDIT_STORE in a folder or at `store_uri`, and a database to back up."""

    def __init__(
        self,
        database: postgres.Server,
        redis: redis_servers.Server,
        directory: Path,
        *,
        seed: int,
        store_uri: str,
        replica: postgres.Server | None = None,
    ) -> None:
        self.store = directory / "outside"
        self.store_uri = store_uri or f"file:{self.store}"
        super().__init__(database, redis, directory, Random(seed), replica)

    def new_registry(self, **env: str) -> LiveRegistry:
        return super().new_registry(AUDIT_STORE=self.store_uri, **env)

    def back_up(self) -> Path:
        """Dump the database with the command of docs/restore.md."""
        path = self.directory / f"agentauth-{time.monotonic_ns()}.dump"
        self.as_printed("backup", BACKUP=str(path))
        return path

    def restore(self, dump: Path) -> None:
        """Replace the database by the dump, as docs/restore.md does; open connections are cut."""
        self.database.say("DROP DATABASE IF EXISTS agentauth_lost")
        self.as_printed("restore", BACKUP=str(dump))

    def as_printed(
        self,
        name: str,
        *,
        code: int = 0,
        beside_server: bool = False,
        instead: Mapping[str, str] | None = None,
        **env: str,
    ) -> str:
        """Run the block of docs/restore.md that begins with this comment, answer yes, and return
        its output.

        `beside_server`: on the database's machine, as the database's user. `instead`: what stands
        in place of the page's words.
        """
        [block] = re.findall(rf"```sh\n\s*# {name}\n(.*?)```", PAGE.read_text(), re.DOTALL)
        for printed, own in (instead or {}).items():
            assert printed in block, printed
            block = block.replace(printed, own)
        server = self.database.url.rpartition("/")[0]
        places = {
            "DATABASE_OWNER_URL": self.database.url,
            "OWNER_URL": self.database.url,
            "SERVER_URL": f"{server}/postgres",
            "RESTORED_URL": f"{server}/agentauth_restored",
            "OWNER_ROLE": postgres.ROLE,
        }
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:{postgres.binaries()}"}
        done = subprocess.run(  # type: ignore[call-overload]
            ["bash", "-euc", block],
            check=False,
            cwd=self.database.directory if beside_server else ROOT,
            **(postgres.as_server_user() if beside_server else {}),
            env=self.registry.env | path | places | env,
            input="yes\n",
            stdout=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == code, done.stdout
        return str(done.stdout)

    def readiness(self, name: str = "drf") -> dict[str, Any]:
        """Its checks and the answer's `status`; `status` 0 while the server does not listen."""
        try:
            answer = httpx.get(f"{self.servers[name].url}/health/ready", timeout=10)
        except httpx.ConnectError:
            return {"status": 0}
        return {"status": answer.status_code, **answer.json()["checks"]}

    def why_held(self) -> str:
        """What the processes found, as their logs say."""
        return str(self.sql("SELECT held_because FROM verifier_home")[0][0])

    def until_held(self) -> None:
        until(
            lambda: bool(self.sql("SELECT held_at FROM verifier_home")[0][0]), "it is not held", 30
        )
        for name in self.servers:
            until(partial(self._is_failing, name), f"{name} acts", 30)

    def _is_failing(self, name: str) -> bool:
        return bool(self.readiness(name).get("history") == "failing")

    def _is_ready(self, name: str) -> bool:
        return bool(self.readiness(name)["status"] == 200)

    def until_it_decides(self) -> None:
        for name in self.servers:
            until(partial(self._is_ready, name), f"{name} is not ready", 60)
        until(lambda: self.home()[2] is False, "no epoch begins")
        time.sleep(1.5)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a management command with `--json`; a failure does not raise."""
        whole = [sys.executable, "manage.py", *arguments, "--json"]
        return subprocess.run(
            whole, cwd=ROOT, env=self.registry.env, capture_output=True, text=True, check=False
        )

    def go_on(self, *arguments: str) -> Any:
        """Run `continue_after_restore` as one operator; returns its output."""
        done = self.command("continue_after_restore", "--operator", "alice", "--yes", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def put_outside(self) -> None:
        """Sign everything so far and copy it out now: the jobs would take up to a minute."""
        self.registry.manage("seal_audit")


Kind = TypeVar("Kind", bound=RestoreStage)


@contextlib.contextmanager
def restore_stage(
    directory: Path, kind: type[Kind], *, seed: int = 1, store_uri: str = ""
) -> Iterator[Kind]:
    """Everything running, with the replay cache in Redis."""
    with postgres.server() as database, redis_servers.server() as redis:
        made = kind(database, redis, directory, seed=seed, store_uri=store_uri)
        with made.while_up():
            yield made


@dataclass
class Story:
    """What existed at the backup, and what followed: a payment, a revocation, a deleted user."""

    admin: LivePerson
    payer: Scene
    reader: Scene
    leaver: Scene
    # The key of the payer's one payment after the backup; tokens from before the backup.
    key: str
    tokens: dict[str, str]


def begin_story(stage: RestoreStage) -> Story:
    """A user with an approved grant to pay, and two reading agents of other users."""
    admin = LivePerson(stage.registry, ADMIN)
    in_django(
        stage,
        f"from registry.models import Human; human = Human.objects.get(email={ADMIN!r}); "
        "human.is_staff = True;"
        " human.set_seal(); human.save()",
    )
    wishes: list[dict[str, Any]] = [
        {
            "capabilities": [PAY],
            "envelope": {"budgets": [budget("10.00", "total")]},
            "owner": ADMIN,
        },
        {"capabilities": [READ], "envelope": {}},
        {"capabilities": [READ], "envelope": {}},
    ]
    payer, reader, leaver = scenes(stage.registry, wishes)
    approved = admin.decide(payer.grant_id, admin.sign(payer.grant_id))
    assert approved.status_code == 200, approved.text
    tokens = {place.grant_id: token_of(place) for place in (payer, reader, leaver)}
    return Story(admin, payer, reader, leaver, "order-1", tokens)


def pay(
    stage: Stage, story: Story, key: str, where: str = "a", amount: str = "6.00"
) -> httpx.Response:
    """One payment under the agent's key, with a new token."""
    return asks(stage, story.payer, token_of(story.payer), where, key=key, amount=amount)


def asks(
    stage: Stage, place: Scene, token: str, where: str = "a", *, key: str = "", amount: str = ""
) -> httpx.Response:
    """A question to a verifier; retried with the nonce that is required after a move."""
    action: dict[str, Any] = dict(READ)
    if amount:
        action = {
            "type": "transact",
            "resource": "payments",
            "amount": {"value": amount, "currency": "EUR"},
        }
    return asked(stage, place, token, where, action, key)


def asked(
    stage: Stage, place: Scene, token: str, where: str, action: dict[str, Any], key: str
) -> httpx.Response:
    nonce = None
    while True:
        answer = httpx.post(
            f"{stage.servers[where].url}/v1/verify",
            json=question_of(place, token, action, nonce, key),
            auth=(place.client_id, place.client_secret),
            timeout=20,
        )
        if nonce or answer.json().get("error") != "use_dpop_nonce":
            return answer
        nonce = answer.json()["nonce"]


def in_django(stage: Stage, code: str) -> str:
    """The output of code run in the registry's Django environment."""
    head = "import datetime; now = datetime.datetime.now(datetime.UTC)\n"
    return run_in_django(head + code, stage.registry.env)


def go_on_after_backup(stage: RestoreStage, story: Story) -> None:
    """A payment, a revocation and a user's deletion, all acknowledged and copied out."""
    # A busy machine may answer 503: callers ask again under the same key.
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        paid = pay(stage, story, story.key)
        if paid.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > until:
            break
        time.sleep(0.2)
    assert paid.json().get("valid") is True, paid.text
    in_django(
        stage,
        f"""
from audit.services import Actor
from approvals.services.human_suspension_and_erasure import delete_human
from registry.models import Grant, Human
from registry.services.grants import revoke_grant
actor = Actor("human", "{story.reader.human_id}")
grant = Grant.objects.select_related("agent").get(pk="{story.reader.grant_id}")
revoke_grant(grant=grant, actor=actor, now=now)
delete_human(human=Human.objects.get(pk="{story.leaver.human_id}"), actor=actor, now=now)
""",
    )
    stage.put_outside()
