"""What KEY_BACKEND may say behind its scheme. Known without a home's library, so that the start can refuse the rest."""

import re
from typing import Final

REGION: Final = r"[a-z]{2}(?:-[a-z]{1,16}){1,3}-[0-9]{1,2}"
RING: Final = r"projects/[a-z0-9.:-]{1,80}/locations/[a-z0-9-]{1,63}/keyRings/[A-Za-z0-9_-]{1,63}"
# Behind the ring: keys are made in hardware.
HARDWARE: Final = ":hsm"
LABEL: Final = r"[A-Za-z0-9._-]{1,32}"
MOUNT: Final = r"[A-Za-z0-9_-]{1,64}"

# Scheme → the whole of a place, and what it is.
PLACES: Final = {
    "awskms": (REGION, "a region, as in awskms:eu-central-1"),
    "file": ("", "no place: VAR_DIR is where they are"),
    "gcpkms": (
        f"{RING}(?:{HARDWARE})?",
        f"a key ring: gcpkms:projects/…/locations/…/keyRings/…, and {HARDWARE} after it for hardware",
    ),
    "pkcs11": (LABEL, "a token by its label: pkcs11:LABEL"),
    "vault": (f"(?:{MOUNT})?", "a mount of Transit, as in vault:transit, or none"),
}


def place_error(key_backend: str) -> str:
    """What is wrong with a KEY_BACKEND, in one line; empty where nothing is. Whether the place exists is not asked."""
    scheme, _, place = key_backend.partition(":")
    if scheme not in PLACES:
        return f"There is no key backend named {scheme[:16]!r}; there are: {', '.join(PLACES)}."
    pattern, what = PLACES[scheme]
    return "" if re.fullmatch(pattern, place) else f"KEY_BACKEND={scheme} names {what}."
