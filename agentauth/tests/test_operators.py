"""Commands that enlarge rights record the operator's name in every event (SA-1)."""

import os
import pwd
from collections.abc import Callable
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from audit.models import Event
from registry.models import Human, ServiceProvider

pytestmark = pytest.mark.django_db

COMMANDS: dict[str, Callable[[Human, ServiceProvider], list[str]]] = {
    "create_service_provider": lambda _human, _provider: [
        "Beta",
        "--audience",
        "https://beta.example",
    ],
    "change_service_provider": lambda _human, provider: [provider.slug, "--allow", "read:calendar"],
    "rotate_service_provider_secret": lambda _human, provider: [provider.slug],
    "create_enrolment_code": lambda human, _provider: ["--human", human.email],
    "setup_link": lambda human, _provider: ["--recover", human.email],
}


def actors(command: str, *arguments: str) -> set[tuple[str, str]]:
    """The actors in the events of this command."""
    before = set(Event.objects.values_list("pk", flat=True))
    call_command(command, *arguments, stdout=StringIO())
    return set(Event.objects.exclude(pk__in=before).values_list("actor_kind", "actor_id"))


@pytest.mark.parametrize("command", COMMANDS)
def test_SA_1_a_command_that_enlarges_names_its_operator(
    command: str, alice: Human, service_provider: ServiceProvider
) -> None:
    arguments = COMMANDS[command](alice, service_provider)
    assert actors(command, *arguments, "--operator", " Olga ") == {("system", "command:Olga")}


def test_SA_1_without_a_name_it_is_the_user_of_the_shell() -> None:
    user = pwd.getpwuid(os.getuid()).pw_name
    assert actors("setup_link") == {("system", f"command:{user}")}


@pytest.mark.parametrize("name", ["", "  ", "x" * 57, "Olga\nPaul"])
def test_SA_1_an_operator_without_a_fit_name_is_refused(name: str) -> None:
    with pytest.raises(CommandError, match="--operator"):
        call_command("setup_link", "--operator", name, stdout=StringIO())
    assert not Event.objects.exists()
