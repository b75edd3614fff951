import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "statement",
    [
        "import agentauth.sdk, agentauth.cli.application",
        "from agentauth import AgentAuthClient, Capability",
        "from agentauth.sdk import VerifierClient",
    ],
)
def test_sdk_imports_without_django(statement: str) -> None:
    blocked = "import sys\nfor name in ('django', 'rest_framework'): sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + statement], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_more() -> None:
    program = "import sys, agentauth; print('agentauth.sdk' in sys.modules, 'httpx' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["False", "False"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    import agentauth

    with pytest.raises(AttributeError):
        _ = agentauth.nonsense
