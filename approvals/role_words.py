"""The roles of administrators in words (registry/roles.py has what each may do)."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from django.utils.translation import gettext_lazy as _

from registry.roles import Role


class Words(NamedTuple):
    """A role's name, and what it allows."""

    label: Any
    description: Any


NO_ROLE: Final = Words(_("No role"), _("Uses the registry for their own agents."))
ROLES: Final[Mapping[Role, Words]] = {
    Role.OWNER: Words(
        _("Owner of the registry"),
        _(
            "Does everything. Only owners invite people, give roles, change service providers and "
            "rules, recover accounts, and end things for good."
        ),
    ),
    Role.OPERATOR: Words(
        _("Operator"),
        _(
            "Reads everything. Suspends and resumes agents, grants and service providers; suspends "
            "people and signs them out, except administrators; sends messages again; publishes "
            "the next signing key."
        ),
    ),
    Role.APPROVER: Words(
        _("Approver"),
        _(
            "Reads requests, grants, agents and service providers. Decides on what is passed on "
            "to the administrators, and denies requests."
        ),
    ),
    Role.AUDITOR: Words(_("Auditor"), _("Reads everything and exports lists. Changes nothing.")),
}
