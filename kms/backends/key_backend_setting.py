"""The valid places in KEY_BACKEND, and the package of each backend, checked at startup.

Imports no library of a backend.
"""

import re
from typing import Final

from audit.optional_packages import Package

REGION: Final = r"[a-z]{2}(?:-[a-z]{1,16}){1,3}-[0-9]{1,2}"
RING: Final = r"projects/[a-z0-9.:-]{1,80}/locations/[a-z0-9-]{1,63}/keyRings/[A-Za-z0-9_-]{1,63}"
# After the key ring: keys are made in hardware.
HARDWARE: Final = ":hsm"
LABEL: Final = r"[A-Za-z0-9._-]{1,32}"
MOUNT: Final = r"[A-Za-z0-9_-]{1,64}"

# Scheme → pattern of the whole place, and its description.
PLACES: Final = {
    "awskms": (REGION, "a region, as in awskms:eu-central-1"),
    "file": ("", "no place: keys are in VAR_DIR"),
    "gcpkms": (
        f"{RING}(?:{HARDWARE})?",
        (
            f"a key ring: gcpkms:projects/…/locations/…/keyRings/…, and {HARDWARE} after it for "
            "hardware"
        ),
    ),
    "pkcs11": (LABEL, "a token by its label: pkcs11:LABEL"),
    "vault": (f"(?:{MOUNT})?", "a mount of Transit, as in vault:transit, or no mount"),
}
# Scheme → the library that the backend wraps. `file` needs none.
PACKAGES: Final = {
    "awskms": Package("boto3", "botocore"),
    "gcpkms": Package("google-cloud-kms", "google.cloud.kms_v1"),
    "pkcs11": Package("python-pkcs11", "pkcs11"),
    "vault": Package("hvac", "hvac"),
}


def place_error(key_backend: str) -> str:
    """What is wrong with a KEY_BACKEND, in one line; empty if nothing.

    Does not check that it exists.
    """
    scheme, _, place = key_backend.partition(":")
    if scheme not in PLACES:
        return f"There is no key backend named {scheme[:16]!r}; there are: {', '.join(PLACES)}."
    pattern, what = PLACES[scheme]
    return "" if re.fullmatch(pattern, place) else f"KEY_BACKEND={scheme} must name {what}."


def package_error(scheme: str, *, needed_by: str) -> str:
    """Which package a backend lacks, in one line; empty if none."""
    package = PACKAGES.get(scheme)
    return package.missing(needed_by) if package else ""
