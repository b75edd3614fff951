"""Who signs tokens: a token key itself, or a key that lives in this process and that the token key certified.

The private key is made after the fork, never leaves the memory, and ends with the process. Nothing here waits for a
key service in a request's own time: a request that finds the key half way through its life starts one short thread
that makes the next. While there is none that may sign, the token key does.
"""

import logging
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.db import connections
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.keys import LocalSigner, PrivateKey, Signer
from agentauth.protocol.token import MAX_TOKEN_SECONDS, CertifiedKey
from audit.statements import Columns, Question
from kms.certificates import CERTIFIED_FOR, certify
from kms.lifetimes import HANDOVER, lifetimes
from kms.models import Key
from kms.pace import PACE
from kms.services import signer
from kms.state import KEY_CHANGES

logger = logging.getLogger(__name__)

# The next is made after this share of a life, a little different in each process: long before the end of the present one.
_RENEW_AFTER: Final = (0.3, 0.5)
# Seconds until a renewal that failed is tried again, likewise.
_TRY_AGAIN: Final = (20.0, 40.0)
# Who signs is asked for once in so long, not for each token. A key that was disabled meanwhile signs what is refused everywhere, and
# tokens of one that was followed count for longer than that (`kms.lifetimes.CLOCK_SKEW`).
KNOWN_FOR: Final = timedelta(seconds=1)
# What `lifetimes` needs of each token key that may still count, and whether it stands behind the certified key.
_KEYS_AND_MINE: Final = Question(
    "SELECT {}, EXISTS (SELECT 1 FROM kms_keycertificate WHERE issuer_id = k.id AND kid = %s AND state = 'certified')"
    " FROM kms_key k WHERE purpose = 'token' AND (needed_until IS NULL OR needed_until >= %s)",
    k=Columns(Key, {"purpose", "state", "active_from", "retired_at", "needed_until"}),
)


@dataclass(frozen=True, slots=True)
class Held:
    """A certified key in this process, and within which limits it signs; its representation shows no secret."""

    signer: LocalSigner
    limits: CertifiedKey
    usable_from: datetime
    renew_at: datetime


def _in_thread(work: Callable[[], None]) -> None:
    def run() -> None:
        try:
            work()
        finally:
            connections.close_all()

    threading.Thread(target=run, name="agentauth-certifying", daemon=True).start()


class Delegate:
    """The certified keys of one process. `run` has work done beside the request; for all threads."""

    def __init__(self, run: Callable[[Callable[[], None]], None] = _in_thread) -> None:
        self._run = run
        self.forget()

    def forget(self) -> None:
        """Hold nothing: a child of a fork shares no key with its parent."""
        self._lock = threading.Lock()
        self._held: tuple[Held, ...] = ()
        self._renewing = False
        self._again_at: datetime | None = None

    def signer(self, *, issued_at: int, expires_at: int, now: datetime) -> Held | None:
        """The newest key that may sign a token of these times (unix seconds) at `now`; None where there is none.

        Whether its certificate still counts comes from the database, as for a token key.
        """
        seconds = int(now.timestamp())
        found: Held | None = None
        newest = self._held[0] if self._held else None
        due = newest is None or now >= newest.renew_at
        for held in self._held:
            within = held.limits.may_sign(issued_at=issued_at, expires_at=expires_at, now=seconds)
            if found is not None or not within or now < held.usable_from:
                continue
            counts, followed = _standing(held, now)
            if counts:
                found = held
            else:
                self._drop(held)
            # What another key followed, or what was taken away, is replaced at once, unless that is under way.
            due = due or (held is newest and (followed or not counts))
        if due:
            self._renew(now)
        return found

    def _drop(self, held: Held) -> None:
        with self._lock:
            self._held = tuple(each for each in self._held if each is not held)

    def _renew(self, now: datetime) -> None:
        with self._lock:
            if self._renewing or (self._again_at is not None and now < self._again_at):
                return
            self._renewing = True
        try:
            self._run(self._make)
        except RuntimeError:
            # No thread could be started.
            logger.exception("no key could be made for this process")
            self._renewing = False

    def _make(self) -> None:
        now = timezone.now()
        try:
            private_key = PrivateKey.generate()
            row = certify(private_key.public, process=os.getpid(), now=now)
            limits = CertifiedKey(
                private_key.public,
                int(row.not_before.timestamp()),
                int(row.not_after.timestamp()),
                MAX_TOKEN_SECONDS,
            )
            renew_at = now + CERTIFIED_FOR * random.uniform(*_RENEW_AFTER)  # noqa: S311 — spreads load, keeps no secret
            made = Held(LocalSigner(private_key), limits, row.usable_from, renew_at)
            with self._lock:
                living = (each for each in self._held if each.limits.not_after > now.timestamp())
                self._held = (made, *living)
        except TemporarilyUnavailableError as error:
            logger.warning("no key was certified for this process: %s", error.description)
            self._again_at = now + timedelta(seconds=random.uniform(*_TRY_AGAIN))  # noqa: S311 — as above
        except Exception:
            logger.exception("no key was certified for this process")
            self._again_at = now + timedelta(seconds=random.uniform(*_TRY_AGAIN))  # noqa: S311 — as above
        finally:
            self._renewing = False


DELEGATE = Delegate()
os.register_at_fork(after_in_child=DELEGATE.forget)


@dataclass(frozen=True, slots=True)
class _Choice:
    """Who signs: found at a moment, in a way of signing, after so many changes of keys here. `limits` are a certified key's."""

    signer: Signer
    limits: CertifiedKey | None
    at: datetime
    way: str
    changes: int

    def holds(self, *, issued_at: int, expires_at: int, now: datetime) -> bool:
        within = self.limits is None or self.limits.may_sign(
            issued_at=issued_at, expires_at=expires_at, now=int(now.timestamp())
        )
        fresh = timedelta(0) <= now - self.at < KNOWN_FOR and self.changes == KEY_CHANGES.number
        return within and fresh and self.way == settings.TOKEN_SIGNING


class Choosing:
    """The last choice of this process."""

    def __init__(self) -> None:
        self.last: _Choice | None = None

    def forget(self) -> None:
        """A child of a fork signs with no key of its parent."""
        self.last = None


CHOSEN = Choosing()
os.register_at_fork(after_in_child=CHOSEN.forget)


@contextmanager
def turn_to_sign() -> Iterator[None]:
    """Before a token is asked for in vain: raises TemporarilyUnavailableError where the key service would refuse to sign it.

    Whoever fails inside had no turn: else strangers could take them all.
    """
    last = CHOSEN.last
    if last is not None and last.limits is not None:
        yield
        return
    PACE.admit()
    try:
        yield
    except Exception:
        PACE.give_back()
        raise


def token_signer(*, issued_at: int, expires_at: int, now: datetime) -> Signer:
    """Who signs a token of these times (unix seconds) at `now`, as TOKEN_SIGNING says, as of KNOWN_FOR ago at most.

    A change that this process made is known at once. Raises TemporarilyUnavailableError.
    """
    last = CHOSEN.last
    if last is not None and last.holds(issued_at=issued_at, expires_at=expires_at, now=now):
        return last.signer
    # Before anything is read: what changes meanwhile is asked for again.
    way, changes = settings.TOKEN_SIGNING, KEY_CHANGES.number
    if way == "delegated":
        held = DELEGATE.signer(issued_at=issued_at, expires_at=expires_at, now=now)
        if held is not None:
            CHOSEN.last = _Choice(held.signer, held.limits, now, way, changes)
            return held.signer
        # The token key signs this one alone, in its turn: the next may be one that a certified key may sign.
        CHOSEN.last = None
        return signer(purpose=Key.Purpose.TOKEN, now=now)
    found = signer(purpose=Key.Purpose.TOKEN, now=now)
    CHOSEN.last = _Choice(found, None, now, way, changes)
    return found


def _standing(held: Held, now: datetime) -> tuple[bool, bool]:
    """Whether the key may sign at `now`, and whether the one that certified it was followed by another. One query."""
    rows = _KEYS_AND_MINE.ask(held.signer.kid, now)
    for (_, certified), life in zip(rows, lifetimes((key for key, _ in rows), now=now), strict=True):
        if not certified:
            continue
        if life.state == Key.State.ACTIVE:
            return True, False
        return bool(life.retired_at and life.verifies(now) and now < life.retired_at + HANDOVER), True
    return False, True
