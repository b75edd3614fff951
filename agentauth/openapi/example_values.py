"""The values of all examples: the story of docs/example.md, signed with its keys (story.json)."""

import json
from pathlib import Path
from typing import Any, Final

STORY: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("story.json").read_text("utf-8"))
ISSUER: Final[str] = STORY["issuer"]
ID: Final[dict[str, str]] = STORY["ids"]
ASKED_AT: Final = "2027-01-15T08:00:00.250000Z"
DECIDED_AT: Final = "2027-01-15T08:03:12.400000Z"
HOUR_LATER: Final = "2027-01-15T09:00:00.250000Z"
VALID_UNTIL: Final = "2027-02-15T08:00:00Z"
MANIFEST_ENDS: Final = "2027-04-15T08:00:00Z"
PROVIDER: Final = {
    "id": ID["service provider"],
    "slug": "acme",
    "name": "Acme",
    "audience": STORY["audience"],
}
GRANT_PAGE: Final = f"{ISSUER}/approvals/{ID['grant']}/"
CLAIM_PAGE: Final = f"{ISSUER}/claim/AY0s4nY0YxV2m7c0XlqV3A/"
