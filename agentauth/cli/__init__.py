"""The command line of an agent, an auditor and a witness: `agentauth --help`.

`application` declares the commands of an agent with Typer, `log_application` those about the log.
They are in `agent_commands`, `mcp_server`, `doctor`, `auditor_commands` and `witness_commands`.
`run_command` runs one, `output` prints its result, and `pending_display` shows that a person must
decide.
"""

import sys
from collections.abc import Sequence

from agentauth.sdk.stderr_output import print_stderr

_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command with `arguments`, by default those of the process; returns the exit code.

    0 done, 1 refused, 2 wrong usage, 3 a person must decide, 4 unavailable, 130 interrupted
    (docs/cli.md).
    """
    try:
        from .application import run
    except ImportError as error:
        # An installation without the extra has the console script too.
        print_stderr(f"error: {error}")
        return _USAGE
    return run(sys.argv[1:] if arguments is None else arguments)
