"""Check approval receipts offline: the file, the trusted keys, and what the receipt says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agentauth.protocol.approval_receipt import MAX_RECEIPT_BYTES, VerifiedReceipt, verify_receipt
from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import AgentAuthError, InvalidReceiptError, InvalidRequestError
from agentauth.protocol.jose import parse_compact
from agentauth.protocol.keys import PublicKey, parse_jwk

_MAX_FILE_BYTES: Final = 1_048_576


def check_receipt(
    text: str, *, keys: Mapping[str, PublicKey], issuer: str | None
) -> VerifiedReceipt:
    """Check a receipt: a compact JWS, or a JSON object whose member `receipt` is one.

    Without `issuer`, any holder of a trusted key may have issued it. Raises InvalidReceiptError.
    """
    compact = text.strip()
    try:
        if compact.startswith("{"):
            compact = str(read_object(compact, max_bytes=_MAX_FILE_BYTES).get("receipt"))
        expected = issuer if issuer is not None else _issuer_claimed(compact)
    except AgentAuthError as error:
        raise InvalidReceiptError(f"The receipt is not valid: {error.description}") from None
    return verify_receipt(compact, keys=keys, expected_issuer=expected)


def read_key_set(text: str) -> dict[str, PublicKey]:
    """Read a JWK Set as keys by `kid`.

    Raises InvalidRequestError: a set with an invalid key, or with a missing or repeated `kid`, is
    no trust anchor.
    """
    entries = read_object(text, max_bytes=_MAX_FILE_BYTES).get("keys")
    if not isinstance(entries, list) or not entries:
        raise InvalidRequestError("The trusted keys must be a JWK Set with at least one key.")
    keys: dict[str, PublicKey] = {}
    for entry in entries:
        kid = entry.get("kid") if isinstance(entry, dict) else None
        if not isinstance(kid, str) or kid in keys:
            raise InvalidRequestError("Every trusted key needs a kid of its own.")
        keys[kid] = parse_jwk(entry)
    return keys


def read_file(name: str) -> str:
    """A text file of at most 1 MB. Raises InvalidRequestError."""
    try:
        with Path(name).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise InvalidRequestError(f"{name} is too large.")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        raise InvalidRequestError(f"{name} cannot be read.") from None


def summary(receipt: VerifiedReceipt) -> dict[str, object]:
    """What the receipt proves: who decided what, for whom, and the text they read."""
    statement = receipt.statement.body
    return {
        "kind": statement.get("kind"),
        "decision": statement.get("decision"),
        "issuer": statement.get("issuer"),
        "human_id": receipt.human_id,
        **_routed(statement.get("routing")),
        "agent": _name(statement.get("agent")),
        "service_provider": _name(statement.get("service_provider")),
        "grant_id": statement.get("grant_id"),
        "issued_at": statement.get("issued_at"),
        "signed_by": f"passkey ({receipt.passkey_alg}), receipt key {receipt.kid}",
        "consent_text": receipt.consent_text,
    }


def _issuer_claimed(compact: str) -> str:
    """The issuer a receipt names.

    Not verified: only for comparison with what is verified afterwards.
    """
    statement = read_object(parse_compact(compact, max_bytes=MAX_RECEIPT_BYTES).payload).get(
        "statement"
    )
    return str(statement.get("issuer")) if isinstance(statement, dict) else ""


def _routed(routing: object) -> dict[str, object]:
    """For whom the signer decided and by which rule; empty if they are the agent's owner."""
    if not isinstance(routing, Mapping):
        return {}
    return {
        "decided_for": _name(routing.get("for")),
        "decided_as": routing.get("as"),
        "rule": _name(routing.get("rule")),
        "group": _name(routing.get("group")),
    }


def _name(party: object) -> object:
    return f"{party.get('name')} ({party.get('id')})" if isinstance(party, Mapping) else None
