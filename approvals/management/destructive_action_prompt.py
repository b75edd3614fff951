"""Ask before an irreversible act on the command line: show what ends, as the page does."""

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.utils import timezone

from agentauth.protocol.errors import InvalidStateError
from approvals.services.destructive_actions import KINDS
from audit.management.base_commands import JsonCommand


def ask(command: JsonCommand, kind: str, **named: str) -> None:
    """Show on stderr what ends with this row, and return only after a yes.

    Returns without asking if there is no such row: the service refuses that. Raises CommandError if
    the operator does not agree, InvalidStateError if the row cannot end now.
    """
    try:
        row = KINDS[kind].rows.filter(**named).first()
    except (ValueError, ValidationError):
        # Not a valid id, so there is no such row.
        return
    loss = KINDS[kind].describe(row, timezone.now()) if row is not None else None
    if loss is None:
        return
    if loss.refusal:
        # Refuse here: a moment later the service may allow it without the operator having been
        # asked.
        raise InvalidStateError(loss.refusal)
    for line in (loss.title, *(f"  {line}" for line in (*loss.about, *loss.facts))):
        command.tell(line)
    if loss.tokens:
        command.tell(f"  Access tokens that are valid now and are refused at once: {loss.tokens}")
    if not command.agrees(f"This cannot be undone. {KINDS[kind].verb.capitalize()} it?"):
        raise CommandError(
            "Nothing was changed, because the answer was not yes. Answer yes, or pass --yes."
        )
