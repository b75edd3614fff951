"""The roles of administrators and what each may do: the only such table (ADR 50).

Pages, the checks of acts, docs/acts.md and the tests read it. Pure: no database.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What an administrator is in this registry. Other people have none."""

    OWNER = "owner"
    OPERATOR = "operator"
    APPROVER = "approver"
    AUDITOR = "auditor"


class Permission(StrEnum):
    """What a page or an act of the control room asks for."""

    # Agents, grants, service providers and their words: what a decision is about.
    READ_REQUESTS = "read_requests"
    # Also people, invitations, messages, keys, the log, recoveries, groups and rules.
    READ_ALL = "read_all"
    # Lists as files.
    EXPORT = "export"
    # Requests that are passed on to the administrators; deny any request.
    DECIDE = "decide"
    # Acts that only take service away or restore it.
    OPERATE = "operate"
    # Every other act: whatever gives a right, and whatever cannot be undone.
    OWN = "own"


PERMISSIONS: Final[Mapping[Role, frozenset[Permission]]] = {
    Role.OWNER: frozenset(Permission),
    Role.OPERATOR: frozenset({Permission.READ_REQUESTS, Permission.READ_ALL, Permission.OPERATE}),
    Role.APPROVER: frozenset({Permission.READ_REQUESTS, Permission.DECIDE}),
    Role.AUDITOR: frozenset({Permission.READ_REQUESTS, Permission.READ_ALL, Permission.EXPORT}),
}
NONE: Final[frozenset[Permission]] = frozenset()


def role_named(name: str | None) -> Role | None:
    """The role of this name; None for a name that this release does not know."""
    return next((role for role in Role if role == name), None)
