"""How a command asks before what cannot be undone: it shows what ends, as the page does, and waits for a yes."""

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.utils import timezone

from agentauth.protocol.errors import InvalidStateError
from approvals.services.ending import KINDS
from audit.management.json_output import JsonCommand


def ask(command: JsonCommand, kind: str, **named: str) -> None:
    """Show on stderr what ends with the row of this name, and go on only after a yes. Raises CommandError.

    A row that is not there is the service's to refuse. Raises InvalidStateError for one that cannot end now.
    """
    try:
        row = KINDS[kind].rows.filter(**named).first()
    except (ValueError, ValidationError):
        # No id of ours.
        return
    loss = KINDS[kind].describe(row, timezone.now()) if row is not None else None
    if loss is None:
        return
    if loss.refusal:
        # Not left to the service: a moment later it may allow this, and the operator was never asked.
        raise InvalidStateError(loss.refusal)
    for line in (loss.title, *(f"  {line}" for line in (*loss.about, *loss.facts))):
        command.tell(line)
    if loss.tokens:
        command.tell(f"  Access tokens that are valid now and are refused at once: {loss.tokens}")
    if not command.agrees(f"This cannot be undone. {KINDS[kind].verb.capitalize()} it?"):
        raise CommandError("Nothing was changed: the answer was not yes. Answer yes, or use --yes.")
