"""Whether this process may act for the installation: its settings are those that were recorded for all processes.

A process with another SECRET_KEY, PUBLIC_URL or Redis would give answers that the others take back. So what must agree
stands in one row, as a fingerprint. Each process compares itself with it before it serves (agentauth/startup.py) and at every look
at the verifier's home, at most a second apart (`verifier.services.home.look`). One command changes it, and the log says so.

The row names settings by the variables that set them. A secret stands there as an id: a keyed hash that shows whether two
are the same and nothing else.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

from django.conf import settings
from django.db import transaction
from django.db.models import Subquery

from agentauth.protocol.errors import InvalidStateError
from audit import kinds
from audit.services import Actor, record
from registry import release
from registry.models import Installation, Token
from registry.services.subjects import LEGACY, check_not_needed, pairwise_subject, pin_to_legacy

# The columns of the row that a look brings along, each as `installation_<name>`. What else may hold processes back belongs here.
LOOKED_AT: Final = ("fingerprint", "release")
NOT_RECORDED: Final = "no settings are recorded for this installation"
_ID_LABEL: Final = b"agentauth/fingerprint/v1"
_ID_CHARACTERS: Final = 16
# Of these a process may hold more than are recorded, so that a new one is handed out before anybody uses it.
_KEYS: Final = frozenset({"SECRET_KEY", "SUBJECT_KEY"})

Fingerprint = Mapping[str, Any]


class _Row(Protocol):
    """A row with what `looked_at` adds to it."""

    installation_fingerprint: Fingerprint | None
    installation_release: int | None


@dataclass(frozen=True, slots=True)
class Halt:
    """Why this process may not act: `told` is for callers, `reason` for operators, with what to do; `check` of readiness fails."""

    told: str
    reason: str
    check: str = "configuration"


def looked_at() -> dict[str, Subquery]:
    """Annotations that bring the row along with a query for another one; all are None where there is no row."""
    row = Installation.objects.filter(pk=Installation.ONLY)
    return {f"installation_{name}": Subquery(row.values(name)[:1]) for name in LOOKED_AT}


def halt(row: _Row) -> Halt | None:
    """Why this process may not act by what a look found, None where it may. The one place where that is decided."""
    if reason := release_disagreement(row.installation_release):
        return Halt("This process is of a release that may not run here.", reason)
    if reason := disagreement(row.installation_fingerprint):
        return Halt("This process is not set up as the others are.", reason)
    return None


def is_database_ahead() -> bool:
    """Whether the database is at a later release than this code. Raises django.db errors."""
    return Installation.objects.filter(pk=Installation.ONLY, release__gt=release.RELEASE).exists()


def release_disagreement(recorded: int | None) -> str | None:
    """What the release of the database has against this code; None where it may run, or nothing is recorded."""
    return None if recorded is None else release.disagreement(recorded)


def disagreement(recorded: Fingerprint | None) -> str | None:
    """What this process's settings have against those `recorded` (None: there are none); None where they agree.

    In development nothing need be recorded: there is one process, or `manage.py serve` starts them alike.
    """
    if recorded is None:
        return None if settings.DEVELOPMENT else f"{NOT_RECORDED}; run manage.py record_settings"
    names = different(recorded, fingerprint())
    if not names:
        return None
    return (
        f"{' and '.join(names)} of this process {'are' if len(names) > 1 else 'is'} not as recorded for all processes."
        f" Correct it here, or change it for all with manage.py record_settings --change {' '.join(names)}"
    )


def fingerprint() -> dict[str, Any]:
    """The settings of this process that must be those of all others, by the variables that set them. No secret is in it."""
    return {
        "PUBLIC_URL": settings.ISSUER,
        # The first one signs; the others are only still, or already, taken.
        "SECRET_KEY": [
            key_id(each.encode()) for each in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
        ],
        "SUBJECT_KEY": [f"{name}={key_id(key)}" for name, key in settings.SUBJECT_KEYS.items()],
        "REDIS_URL": redis_place(settings.REDIS_URL),
        "AUDIT_STORE": store_place(settings.AUDIT_STORE),
    }


def different(recorded: Fingerprint, own: Fingerprint) -> list[str]:
    """The names of the settings in which a process that has `own` may not act beside others that have what is `recorded`.

    Of keys, it holds all that are recorded, and makes new things with one of those.
    """
    return [name for name in own if not _agrees(name, recorded.get(name), own[name])]


def _agrees(name: str, recorded: Any, own: Any) -> bool:
    if name in _KEYS and isinstance(recorded, list):
        return own[0] in recorded and set(recorded) <= set(own)
    return bool(recorded == own)


def key_id(secret: bytes) -> str:
    """64 bits that tell one secret from another and nothing about it, given that it cannot be guessed."""
    return hmac.new(secret, _ID_LABEL, hashlib.sha256).hexdigest()[:_ID_CHARACTERS]


def redis_place(url: str) -> str:
    """Where that Redis is, without who logs in: `host:port,host:port/db`; `none` for no URL."""
    if not url:
        return "none"
    parts = urlsplit(url)
    named = parts.netloc.rpartition("@")[2].split(",")
    hosts = sorted(each if re.search(r":[0-9]+$", each) else f"{each}:6379" for each in named)
    return f"{','.join(hosts)}/{parts.path.strip('/') or '0'}"


def store_place(uri: str) -> str:
    """Where that store is, without how it is used: scheme, place and endpoint; `none` for no URI."""
    if not uri:
        return "none"
    parts = urlsplit(uri)
    endpoint = parse_qs(parts.query).get("endpoint", [""])[0]
    return f"{parts.scheme}:{parts.netloc}{parts.path}{f' at {endpoint}' if endpoint else ''}"


def record_settings(*, change: Iterable[str] = (), actor: Actor, now: datetime) -> list[str]:
    """Record this process's settings for all processes, with an event; returns the names of those that are new or others now.

    The first time all are recorded. Later, only those that `change` names may differ: a second setting that is wrong here does not
    slip in with the one that was meant. Raises InvalidStateError, which names what else differs.
    """
    own = fingerprint()
    with transaction.atomic():
        row = Installation.objects.select_for_update().filter(pk=Installation.ONLY).first()
        old: Fingerprint = {} if row is None else row.fingerprint
        changed = [name for name in own if old.get(name) != own[name]]
        # What an earlier version did not record is new, and no change.
        if unnamed := set(different(old, own)) & set(old) - set(change):
            names = " ".join(sorted(unnamed))
            raise InvalidStateError(f"Not what is recorded, and not to be changed: {names}.")
        if changed or row is None:
            _keep_subjects(old.get("SUBJECT_KEY"), own["SUBJECT_KEY"])
            Installation.objects.update_or_create(
                pk=Installation.ONLY, defaults={"fingerprint": own, "recorded_at": now}
            )
            data = {"changed": changed, "before": dict(old), "after": own}
            record(kind=kinds.SETTINGS_RECORDED, actor=actor, at=now, data=data)
    return changed


def _keep_subjects(old: list[str] | None, own: list[str]) -> None:
    """No version of the subject key goes or changes that a `sub` was made by. Raises InvalidStateError.

    `old` is None where none was recorded. Then whoever had a token before has the `sub` of the version `legacy`, and processes of
    a version without recorded settings may still be running and make more of them.
    """
    first = own[0].partition("=")[0]
    if old is None:
        if Token.objects.exists():
            _check_legacy(first)
        elif first == LEGACY and not settings.DEVELOPMENT:
            raise InvalidStateError(
                "SUBJECT_KEY is not set. Make one with manage.py make_subject_key FILE, and name it in SUBJECT_KEY_FILE."
            )
    elif old != own:
        if any(each.startswith(f"{LEGACY}=") for each in old):
            pin_to_legacy()
        check_not_needed({each.partition("=")[0] for each in old if each not in own})


def _check_legacy(first: str) -> None:
    """The first version is `legacy`, and it makes the `sub` that the newest token has."""
    if first != LEGACY:
        raise InvalidStateError(
            "There are tokens whose `sub` was made by SECRET_KEY. Record the settings without a SUBJECT_KEY first, or with its"
            " version `legacy` first; change it when no process of the former version runs."
        )
    token = Token.objects.select_related("grant__agent").latest("issued_at")
    human, provider = token.grant.agent.human_id, token.grant.service_provider_id
    if human and token.claims["sub"] != pairwise_subject(human, provider, version=LEGACY):
        raise InvalidStateError(
            "SECRET_KEY, or the version `legacy` of SUBJECT_KEY, is not the one that the last token was made with."
        )
