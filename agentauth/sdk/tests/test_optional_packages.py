"""What needs an optional package says in one sentence which one, and nothing else needs it."""

import importlib
import subprocess
import sys

import pytest

OPTIONAL = {
    "agentauth.sdk.keyring_store": ("keyring", r"pip install 'agentauth-sdk\[keyring\]'"),
    "agentauth.sdk.requests_auth": ("requests", r"pip install 'agentauth-sdk\[requests\]'"),
}


@pytest.mark.parametrize("module", OPTIONAL)
def test_a_missing_package_is_named_with_its_extra(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, said = OPTIONAL[module]
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=said):
        importlib.import_module(module)


def test_the_sdk_imports_no_optional_package() -> None:
    program = (
        "import sys, agentauth.sdk, agentauth.sdk.link_display\n"
        "print(*sorted({'keyring', 'requests', 'segno', 'django'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"
