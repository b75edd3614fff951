"""`manage.py check --deploy`: the steps that an installation still lacks, in the order in which to do them."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 — so Django names it
from django.db import DatabaseError, InterfaceError, ProgrammingError, connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from audit.roles import missing_rights
from kms.models import Key
from kms.services import may_sign
from registry.models import Human, Installation
from registry.services.installation import disagreement
from registry.services.subjects import LEGACY

# PostgreSQL's insufficient_privilege.
_NO_RIGHT: Final = "42501"


def _is_migrated() -> bool:
    try:
        executor = MigrationExecutor(connection)
    except ProgrammingError as error:
        if getattr(error.__cause__, "sqlstate", "") == _NO_RIGHT:
            # The migration was begun. Only a role with rights can see whether it is done, and granting them is the next step.
            return True
        raise
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())


def _may_serve() -> bool:
    # Without tables, no right on them is reported as missing.
    return _is_migrated() and not missing_rights("serving")[1]


def _is_recorded() -> bool:
    rows = Installation.objects.filter(pk=Installation.ONLY)
    return disagreement(rows.values_list("fingerprint", flat=True).first()) is None


def _has_keys() -> bool:
    return all(may_sign(purpose=purpose, now=timezone.now()) for purpose in Key.Purpose.values)


def _has_admin() -> bool:
    return Human.objects.filter(is_staff=True, status=Human.Status.ACTIVE).exists()


# Django sorts messages by id, so the numbers give the order of the steps.
_STEPS: Final[tuple[tuple[str, Callable[[], bool], str], ...]] = (
    ("E031", _is_migrated, "The database is not migrated: run manage.py migrate as the owner."),
    (
        "E032",
        _may_serve,
        "The role of DATABASE_URL lacks rights: as the owner, run manage.py grant_serving_role and grant_verifier_role.",
    ),
    (
        "E033",
        _is_recorded,
        "The settings of this process differ from those recorded for all processes: run manage.py record_settings.",
    ),
    ("E034", _has_keys, "A key that may sign is missing: run manage.py ensure_keys."),
    ("E035", _has_admin, "There is no administrator: run manage.py setup_link, and open the link it prints."),
)


@register(deploy=True)
def installation_is_complete(**_kwargs: Any) -> list[CheckMessage]:
    """The missing steps, empty if all are done. Empty in development, where `manage.py serve` does each step."""
    if settings.DEVELOPMENT:
        return []
    return [*_missing(), *_advice()]


def _missing() -> Iterator[CheckMessage]:
    try:
        connection.ensure_connection()
    except (DatabaseError, InterfaceError):
        yield Error(
            "The database does not answer: check that it runs and that DATABASE_URL is correct. The other steps can only be"
            " checked after that.",
            id="agentauth.E030",
        )
        return
    for number, holds, message in _STEPS:
        try:
            done = holds()
        except (DatabaseError, InterfaceError):
            # The check needs what an earlier step creates.
            done = False
        if not done:
            yield Error(message, id=f"agentauth.{number}")


def _advice() -> Iterator[CheckMessage]:
    if next(iter(settings.SUBJECT_KEYS)) == LEGACY:
        yield Warning(
            "SUBJECT_KEY is not set, so SECRET_KEY makes the `sub` of people and cannot be rotated: see Rotating secrets in"
            " docs/operations.md.",
            id="agentauth.W036",
        )
    if not settings.REDIS_URL and not settings.AUDIT_STORE.startswith("s3:"):
        yield Warning(
            "Neither REDIS_URL nor a store outside this host (AUDIT_STORE=s3://…) is set, so a restore of the database from a"
            " backup cannot be detected: set one of them, or follow docs/restore.md after every restore.",
            id="agentauth.W037",
        )
