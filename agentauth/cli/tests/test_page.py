"""docs/cli.md: its commands and options are those of the program.

tests/flows/test_tutorials.py runs its blocks.
"""

import re
from pathlib import Path

import pytest
import typer

from agentauth.cli import main
from agentauth.cli.application import app
from agentauth.sdk.key_store_choice import KEY_STORES

PAGE = (Path(__file__).resolve().parents[3] / "docs/cli.md").read_text()
SECTIONS = dict(part.split("\n", 1) for part in PAGE.split("\n## ")[1:])
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def first_column(section: str) -> list[str]:
    """The code in the first column of the section's tables."""
    rows = re.findall(r"^\| (`.+?) \| ", SECTIONS[section], re.MULTILINE)
    return [code for row in rows for code in re.findall(r"`(.+?)`", row)]


COMMANDS = [code for code in first_column("Commands") if not code.startswith("-")]


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The words of its help."""
    assert main([command, "--help"]) == 0
    return re.findall(r"[\w-]+", capsys.readouterr().out)


def test_the_page_has_every_command_of_the_program() -> None:
    group = typer.main.get_command(app)
    assert sorted(code.split()[0] for code in COMMANDS) == sorted(group.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("code", COMMANDS)
def test_a_command_takes_the_options_that_the_page_gives_it(
    code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = help_of(code.split(maxsplit=1)[0], capsys)
    assert [option for option in OPTION.findall(code) if option not in shown] == []


@pytest.mark.parametrize("command", ["request", "call"])
def test_the_common_options_have_the_variables_of_the_page(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = help_of(command, capsys)
    rows = re.findall(
        r"^\| `(--[a-z-]+).*?` \| (?:`(\w+)`)? ?\|", SECTIONS["Commands"], re.MULTILINE
    )
    assert len(rows) == 5
    assert [each for row in rows for each in row if each and each not in shown] == []


def test_the_page_has_every_key_store() -> None:
    assert tuple(first_column("Where the key is")[1:]) == KEY_STORES


def test_the_program_is_also_a_module_and_completes_its_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "python -m agentauth.cli" in PAGE
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{word}" in shown for word in ("install-completion", "version"))
