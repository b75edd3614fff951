"""The roles of administrators and what each may do: the only such table (ADR 50).

Pages, the checks of acts, docs/acts.md and the tests read it. Pure: no database.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple


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


class Columns(NamedTuple):
    """A role in the two columns of a person or of an invitation.

    `is_staff` is true for owners alone: release 4 lets everyone with it do everything (ADR 50).
    """

    is_staff: bool
    admin_role: str | None


def columns_of(role: Role | None) -> Columns:
    """The columns that stand for this role."""
    return Columns(role is Role.OWNER, None if role in {None, Role.OWNER} else str(role))


def role_in(*, is_staff: bool, admin_role: str | None) -> Role | None:
    """The role that the two columns name. It proves nothing without the row's seal."""
    return Role.OWNER if is_staff else role_named(admin_role)


def role_named(name: str | None) -> Role | None:
    """The role of this name; None for a name that this release does not know."""
    return next((role for role in Role if role == name), None)
