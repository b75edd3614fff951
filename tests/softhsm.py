"""A SoftHSM token for tests: a real PKCS #11 library with its keys in a folder."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

MODULE: Final = "/usr/lib/softhsm/libsofthsm2.so"
PROGRAM: Final = "softhsm2-util"
LABEL: Final = "agentauth"
PIN: Final = "pin-of-the-user-of-a-test"
OFFICER_PIN: Final = "pin-of-the-officer"


def installed() -> bool:
    """Whether SoftHSM is installed."""
    return bool(shutil.which(PROGRAM)) and Path(MODULE).exists()


def token(home: Path) -> dict[str, str]:
    """A new token in `home`; returns the environment to set before loading the library."""
    (home / "tokens").mkdir()
    configuration = home / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {home / 'tokens'}\nlog.level = ERROR\n")
    env = {"SOFTHSM2_CONF": str(configuration), "PKCS11_MODULE": MODULE, "PKCS11_PIN": PIN}
    make = ["--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", OFFICER_PIN]
    subprocess.run([PROGRAM, *make], env={**os.environ, **env}, check=True, capture_output=True)
    return env
