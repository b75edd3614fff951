"""Builds the statements a person signs with a passkey. Each is read back by `parse_statement`.

Those of a resume and of a release after a restore are in `resume_statement.py` and
`grant_release_statement.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from .behavioural_envelope import Envelope
from .capability import Action, Capability
from .catalogue import CatalogueRef
from .encoding import b64u_encode, timestamp
from .passkey_statements import Statement, consent_sha256, parse_statement
from .statement_routing_member import routing_json


@dataclass(frozen=True, slots=True)
class AgentRef:
    """The agent as shown. `jkt` is base64url, `manifest_sha256` hex of the compact manifest."""

    id: str
    name: str
    jkt: str
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class ServiceProviderRef:
    """The service provider as shown to the person."""

    id: str
    name: str
    audience: str


@dataclass(frozen=True, slots=True)
class Signing:
    """What all statements share: where, when and by whom each is signed, and with which text.

    `issued_at` is aware, `nonce` 32 fresh random bytes, `consent_text` plain text with one sentence
    per line, `language` its BCP 47 tag.
    """

    issuer: str
    rp_id: str
    human_id: str
    # None for a statement about no agent.
    agent: AgentRef | None
    issued_at: datetime
    nonce: bytes
    consent_text: str
    language: str


def approval_statement(
    signing: Signing,
    *,
    decision: Literal["approve", "deny"],
    grant_id: str,
    grant_version: int,
    service_provider: ServiceProviderRef,
    capabilities: Sequence[Capability],
    envelope: Envelope,
    valid_until: datetime,
    second_step: bool,
    deny_reason: str | None = None,
    routing: Mapping[str, object] | None = None,
    catalogue: CatalogueRef | None = None,
) -> Statement:
    """Approve or deny a grant (section 6): the terms as granted; when denied, as requested.

    `second_step`: the person took the second explicit step; without it no approval of `transact` or
    `delete` is valid. `catalogue`: whose words the text has, beside the registry's own. Raises
    InvalidRequestError naming the member.
    """
    # Through the parser: a term that only the builder accepts would be signed but never verify.
    return parse_statement(
        common_members(signing, "approval", decision)
        | {
            "grant_id": grant_id,
            "grant_version": grant_version,
            "service_provider": _provider_json(service_provider),
            "capabilities": [capability.to_json() for capability in capabilities],
            "envelope": envelope.to_json(),
            "valid_until": timestamp(valid_until),
            "second_step": second_step,
            "deny_reason": deny_reason,
        }
        | routing_json(routing)
        | _catalogue_json(catalogue)
    )


def confirmation_statement(
    signing: Signing,
    *,
    decision: Literal["confirm", "deny"],
    confirmation_id: str,
    grant_id: str,
    grant_version: int,
    service_provider: ServiceProviderRef,
    action: Action,
    idempotency_key: str,
    routing: Mapping[str, object] | None = None,
    catalogue: CatalogueRef | None = None,
) -> Statement:
    """Confirm or deny one transaction: the whole action and the agent's key of this operation.

    Raises InvalidRequestError naming the member.
    """
    # Action and key in full, not as digests: the receipt alone says what was confirmed.
    return parse_statement(
        common_members(signing, "confirmation", decision)
        | {
            "confirmation_id": confirmation_id,
            "grant_id": grant_id,
            "grant_version": grant_version,
            "service_provider": _provider_json(service_provider),
            "action": action.to_json(),
            "idempotency_key": idempotency_key,
        }
        | routing_json(routing)
        | _catalogue_json(catalogue)
    )


def claim_statement(signing: Signing) -> Statement:
    """A person adopts an unclaimed agent. Raises InvalidRequestError naming the member."""
    return parse_statement(common_members(signing, "claim", "claim"))


def break_statement(
    signing: Signing,
    *,
    name: str,
    origin: str,
    previous_origin: str,
    size: int,
    root: bytes,
    vkeys: Sequence[str],
) -> Statement:
    """After a restore, an administrator confirms that the log goes on as `origin`, with these keys.

    Its first `size` leaves, with root `root` (32 bytes), are those of `previous_origin`. Raises
    InvalidRequestError naming the member.
    """
    return parse_statement(
        common_members(signing, "break", "continue")
        | {
            "name": name,
            "origin": origin,
            "previous_origin": previous_origin,
            "size": size,
            "root": b64u_encode(root),
            "vkeys": list(vkeys),
        }
    )


def catalogue_statement(
    signing: Signing, *, service_provider: ServiceProviderRef, catalogue: CatalogueRef
) -> Statement:
    """An administrator approves one version of a service provider's catalogue.

    Raises InvalidRequestError naming the member.
    """
    return parse_statement(
        common_members(signing, "catalogue", "approve")
        | {"service_provider": _provider_json(service_provider)}
        | _catalogue_json(catalogue)
    )


def logo_statement(
    signing: Signing, *, service_provider: ServiceProviderRef, logo_sha256: str
) -> Statement:
    """An administrator approves a service provider's logo, by the SHA-256 of its PNG in hex.

    Raises InvalidRequestError naming the member.
    """
    return parse_statement(
        common_members(signing, "logo", "approve")
        | {"service_provider": _provider_json(service_provider), "logo_sha256": logo_sha256}
    )


def common_members(signing: Signing, kind: str, decision: str) -> dict[str, object]:
    """The members that every statement has."""
    agent = signing.agent
    about = agent and {
        "agent": {
            "id": agent.id,
            "name": agent.name,
            "jkt": agent.jkt,
            "manifest_sha256": agent.manifest_sha256,
        }
    }
    return {
        "kind": kind,
        "decision": decision,
        "issuer": signing.issuer,
        "rp_id": signing.rp_id,
        "human_id": signing.human_id,
        **(about or {}),
        "issued_at": timestamp(signing.issued_at),
        "nonce": b64u_encode(signing.nonce),
        "consent_sha256": consent_sha256(signing.consent_text),
        "language": signing.language,
    }


def _provider_json(provider: ServiceProviderRef) -> dict[str, object]:
    return {"id": provider.id, "name": provider.name, "audience": provider.audience}


def _catalogue_json(catalogue: CatalogueRef | None) -> dict[str, object]:
    return {} if catalogue is None else {"catalogue": catalogue.to_json()}
