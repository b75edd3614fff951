"""The statements a person signs with a passkey: their exact members, and the challenge of each.

`statement_building.py` builds them. The approvals app decides who may sign what; the proof of the
signature is in `approval_receipt.py`.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

from . import statement_fields as fields
from .behavioural_envelope import DEFAULT_MAXIMA, Maxima, parse_envelope
from .capability import GRAVE_TYPES, parse_action, parse_capabilities
from .encoding import canonical_json, sha256
from .errors import InvalidRequestError
from .json_fields import INTEGER_LIMIT, integer, items, members, text
from .statement_routing_member import ROUTED, check_routing
from .untrusted_text import MAX_NAME, check_host

# Hashed before the statement, so that a signature over one kind cannot be shown as another.
CHALLENGE_TAGS: Final[Mapping[str, bytes]] = {
    "approval": b"agentauth/approval/v1",
    "confirmation": b"agentauth/confirmation/v1",
    "claim": b"agentauth/claim/v1",
    "break": b"agentauth/break/v1",
    "release": b"agentauth/release/v1",
    "resume": b"agentauth/resume/v1",
    "catalogue": b"agentauth/catalogue/v1",
    "logo": b"agentauth/logo/v1",
}
# Denials are signed too: the server alone could have invented an unsigned one.
DECISIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "approval": ("approve", "deny"),
    "confirmation": ("confirm", "deny"),
    "claim": ("claim",),
    "break": ("continue",),
    "release": ("release",),
    "resume": ("resume",),
    "catalogue": ("approve",),
    "logo": ("approve",),
}
MAX_REASON: Final = 500
MAX_RELEASED: Final = 100
# What can be suspended, and who lifts their own suspension; only agents and grants have an owner.
RESUMED: Final = ("agent", "grant", "human", "service_provider")
PARTIES: Final = ("owner", "administrator")

# The agent's name, key and manifest: a rename or key change makes it another statement. The text's
# digest ties the words the person read to the terms a machine enforces.
_WHO: Final = (
    "kind", "decision", "issuer", "rp_id", "human_id", "issued_at", "nonce", "consent_sha256",
    "language",
)  # fmt: skip
_COMMON: Final = (*_WHO, "agent")
_MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "approval": (
        *_COMMON, "grant_id", "grant_version", "service_provider", "capabilities", "envelope",
        "valid_until",
        "second_step", "deny_reason",
    ),
    "confirmation": (
        *_COMMON, "confirmation_id", "grant_id", "grant_version", "service_provider", "action",
        "idempotency_key",
    ),
    "claim": _COMMON,
    # About the log, not about an agent (section 9).
    "break": (*_WHO, "name", "origin", "previous_origin", "size", "root", "vkeys"),
    "release": (*_WHO, "name", "size", "root", "grants"),
    "resume": (*_WHO, "subject", "party", "suspension"),
    "catalogue": (*_WHO, "service_provider", "catalogue"),
    "logo": (*_WHO, "service_provider", "logo_sha256"),
}  # fmt: skip
# Left out, not null, where it does not apply: earlier receipts have none. `routing` if a person
# decides for another, `catalogue` if the text was written from one.
_OPTIONAL: Final[Mapping[str, tuple[str, ...]]] = dict.fromkeys(ROUTED, ("routing", "catalogue"))

# Receipts are kept for ever: a registry that tightens its limits must still read old ones.
_ANY_MAXIMA: Final = Maxima(**dict.fromkeys(DEFAULT_MAXIMA.to_json(), INTEGER_LIMIT - 1))


@dataclass(frozen=True, slots=True)
class Statement:
    """A checked statement. Only the builders and `parse_statement` make it."""

    body: Mapping[str, object]

    @property
    def kind(self) -> str:
        """A key of `CHALLENGE_TAGS`."""
        return str(self.body["kind"])

    @property
    def decision(self) -> str:
        """`approve`, `confirm`, `claim`, `continue`, `release`, `resume` or `deny`."""
        return str(self.body["decision"])

    def canonical(self) -> bytes:
        """The RFC 8785 bytes: one statement, one spelling."""
        return canonical_json(self.to_json())

    def challenge(self) -> bytes:
        """The 32 bytes the passkey signs: `SHA-256(tag ‖ 0x00 ‖ canonical)` (section 6)."""
        return sha256(CHALLENGE_TAGS[self.kind] + b"\x00" + self.canonical())

    def to_json(self) -> dict[str, object]:
        """The wire form."""
        return deepcopy(dict(self.body))


def consent_sha256(consent_text: str) -> str:
    """Lower-case hex SHA-256 of the UTF-8 text. Raises InvalidRequestError for a lone surrogate."""
    try:
        return sha256(consent_text.encode()).hex()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            "consent_text: must not contain half of a surrogate pair."
        ) from None


def parse_statement(obj: object) -> Statement:
    """Read a statement strictly: exactly the members of its kind, each in its one form.

    Builders call this too, so nothing is signed that could not be read back. Raises
    InvalidRequestError naming the member (docs/protocol.md section 6).
    """
    kind = obj.get("kind") if isinstance(obj, dict) else None
    if not isinstance(kind, str) or kind not in _MEMBERS:
        raise InvalidRequestError(f"statement.kind: must be one of {', '.join(_MEMBERS)}.")
    body = members(obj, "statement", required=_MEMBERS[kind], optional=_OPTIONAL.get(kind, ()))
    if body["decision"] not in DECISIONS[kind]:
        raise InvalidRequestError(
            f"statement.decision: must be one of {', '.join(DECISIONS[kind])}."
        )
    _check_common(body)
    if check := _CHECKS.get(kind):
        check(body)
    if "catalogue" in body:
        _check_catalogue(body)
    # A deep copy: what was checked must not change between challenge and receipt.
    return Statement(deepcopy(body))


def _check_common(body: Mapping[str, object]) -> None:
    # A passkey signs only for the pages' own origin, whose host is the rp_id.
    origin = fields.origin(body["issuer"], "statement.issuer")
    host = check_host(body["rp_id"], "statement.rp_id")
    if body["issuer"] != origin or origin.split("//")[1].split(":")[0] != host:
        raise InvalidRequestError(
            "statement.rp_id: must be the host of the issuer, which must be an origin."
        )
    fields.matching(body["human_id"], fields.UUID, "statement.human_id")
    if "agent" in body:
        _check_agent(body)
    fields.time(body["issued_at"], "statement.issued_at")
    # Without it, an old signature could be shown for a new, equal decision.
    fields.bytes32(body["nonce"], "statement.nonce")
    fields.matching(body["consent_sha256"], fields.HEX_SHA256, "statement.consent_sha256")
    fields.matching(body["language"], fields.LANGUAGE, "statement.language")
    if "routing" in body:
        check_routing(body["routing"], body["human_id"])


def _check_agent(body: Mapping[str, object]) -> None:
    # Only the length is checked: names that registration once accepted must stay readable.
    agent = members(
        body["agent"], "statement.agent", required=("id", "name", "jkt", "manifest_sha256")
    )
    fields.matching(agent["id"], fields.UUID, "statement.agent.id")
    text(agent["name"], "statement.agent.name", maximum=MAX_NAME)
    fields.bytes32(agent["jkt"], "statement.agent.jkt")
    fields.matching(agent["manifest_sha256"], fields.HEX_SHA256, "statement.agent.manifest_sha256")


def _check_break(body: Mapping[str, object]) -> None:
    fields.matching(body["name"], fields.BREAK, "statement.name")
    for name in ("origin", "previous_origin"):
        text(body[name], f"statement.{name}", maximum=512)
    integer(body["size"], "statement.size", minimum=0)
    fields.bytes32(body["root"], "statement.root")
    for vkey in items(body["vkeys"], "statement.vkeys", maximum=16):
        text(vkey, "statement.vkeys", maximum=1024)


def _check_release(body: Mapping[str, object]) -> None:
    fields.matching(body["name"], fields.BREAK, "statement.name")
    integer(body["size"], "statement.size", minimum=1)
    fields.bytes32(body["root"], "statement.root")
    for each in items(body["grants"], "statement.grants", maximum=MAX_RELEASED):
        grant = members(each, "statement.grants", required=("id", "version"))
        fields.matching(grant["id"], fields.UUID, "statement.grants.id")
        integer(grant["version"], "statement.grants.version", minimum=1)


def _check_catalogue(body: Mapping[str, object]) -> None:
    where = "statement.catalogue"
    catalogue = members(body["catalogue"], where, required=("version", "sha256"))
    integer(catalogue["version"], f"{where}.version", minimum=1)
    fields.matching(catalogue["sha256"], fields.HEX_SHA256, f"{where}.sha256")


def _check_grant(body: Mapping[str, object]) -> None:
    fields.matching(body["grant_id"], fields.UUID, "statement.grant_id")
    # A signature is for one version: after any change the grant must be signed again.
    integer(body["grant_version"], "statement.grant_version", minimum=1)
    _check_provider(body)


def _check_provider(body: Mapping[str, object]) -> None:
    where = "statement.service_provider"
    provider = members(body["service_provider"], where, required=("id", "name", "audience"))
    fields.matching(provider["id"], fields.UUID, f"{where}.id")
    text(provider["name"], f"{where}.name", maximum=MAX_NAME)
    fields.origin(provider["audience"], f"{where}.audience")


def _check_logo(body: Mapping[str, object]) -> None:
    _check_provider(body)
    fields.matching(body["logo_sha256"], fields.HEX_SHA256, "statement.logo_sha256")


def _check_approval(body: Mapping[str, object]) -> None:
    _check_grant(body)
    capabilities = parse_capabilities(body["capabilities"], "statement.capabilities")
    parse_envelope(body["envelope"], "statement.envelope", maxima=_ANY_MAXIMA)
    fields.time(body["valid_until"], "statement.valid_until")
    second_step, reason = body["second_step"], body["deny_reason"]
    if not isinstance(second_step, bool):
        raise InvalidRequestError("statement.second_step: must be true or false.")
    if reason is not None:
        text(reason, "statement.deny_reason", maximum=MAX_REASON)
    approves = body["decision"] == "approve"
    if approves and reason is not None:
        raise InvalidRequestError("statement.deny_reason: is allowed only in a denial.")
    # Part of what is signed, so no server can forget to ask for the second step.
    if approves and not second_step and any(each.type in GRAVE_TYPES for each in capabilities):
        raise InvalidRequestError(
            "statement.second_step: transact and delete need the second step."
        )


def _check_confirmation(body: Mapping[str, object]) -> None:
    _check_grant(body)
    fields.matching(body["confirmation_id"], fields.UUID, "statement.confirmation_id")
    parse_action(body["action"], "statement.action")
    # The key too: otherwise one yes could serve two equal transactions.
    text(body["idempotency_key"], "statement.idempotency_key", maximum=128)


def _check_resume(body: Mapping[str, object]) -> None:
    where, given = "statement.subject", body["subject"]
    # A person is named by id alone: the receipt outlives their name.
    named = () if isinstance(given, dict) and given.get("type") == "human" else ("name",)
    subject = members(given, where, required=("type", "id", *named))
    if subject["type"] not in RESUMED:
        raise InvalidRequestError(f"{where}.type: must be one of {', '.join(RESUMED)}.")
    fields.matching(subject["id"], fields.UUID, f"{where}.id")
    for name in named:
        text(subject[name], f"{where}.{name}", maximum=MAX_NAME)
    owned = subject["type"] in {"agent", "grant"}
    if body["party"] not in (PARTIES if owned else PARTIES[1:]):
        raise InvalidRequestError(
            "statement.party: must be owner (of an agent or grant) or administrator."
        )
    # Otherwise one signature could lift later suspensions too.
    integer(body["suspension"], "statement.suspension", minimum=0)


_CHECKS: Final = {
    "approval": _check_approval,
    "confirmation": _check_confirmation,
    "break": _check_break,
    "release": _check_release,
    "resume": _check_resume,
    "catalogue": _check_provider,
    "logo": _check_logo,
}
