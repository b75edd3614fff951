"""The table of docs/integrations.md: `python -m agentauth.integrations.tests.table` writes it."""

import os
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs/integrations.md"
HEADING = "| case |"


def table() -> str:
    """Integrations by cases, in Markdown; a case that does not apply has its reason below."""
    from agentauth.integrations.tests.cases import CASES
    from agentauth.integrations.tests.integrations import INTEGRATIONS

    names = [each.name for each in INTEGRATIONS]
    lines = [f"{HEADING} {' | '.join(names)} |", f"|---{'|:-:' * len(names)}|"]
    for title in (*CASES, "the vectors of DPoP proofs have their outcome"):
        cells = ["–" if title in each.leaves_out else "✓" for each in INTEGRATIONS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    reasons = [
        f"– {each.name}: {reason}." for each in INTEGRATIONS for reason in each.leaves_out.values()
    ]
    return "\n".join([*lines, "", *reasons]) + "\n"


def page() -> str:
    """The page with the present table, which is its last part."""
    before, _, _ = PAGE.read_text().partition(HEADING)
    return before + table()


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
    import django

    django.setup()
    PAGE.write_text(page())
