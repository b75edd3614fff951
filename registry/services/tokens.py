"""Access tokens: the row is committed first, then signed, then delivered; revoked by one column."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from django.conf import settings
from django.db import transaction

from agentauth.protocol.behavioural_envelope import EMPTY, Envelope, parse_envelope
from agentauth.protocol.capability import Capability, parse_capabilities
from agentauth.protocol.errors import (
    EncodingError,
    IdempotencyExpiredError,
    InvalidGrantError,
    InvalidSignatureError,
    InvalidTokenError,
    NotFoundError,
)
from agentauth.protocol.identifiers import parse_id
from agentauth.protocol.jose import parse_compact, verify_jws
from agentauth.protocol.token import MAX_TOKEN_SECONDS, TYP, build_claims, public_key_of, sign_token
from audit import kinds
from audit.db.prebuilt_sql import Columns, SelectQuery, Statement
from audit.fault_injection import fault_point
from audit.new_ids import new_id
from audit.services import Actor, record, record_refusal
from kms.process_key_certificates import token_keys
from kms.state_change_publisher import Subject, publish_change
from kms.token_signer import token_signer
from registry.models import Agent, Grant, Human, ServiceProvider, Token
from registry.services.agent_key_lookup import may_call
from registry.services.approval_receipt_check import DISABLED_KEYS, PROVED, SEAL_ENDED, terms_of
from registry.services.pairwise_subjects import pairwise_subject
from registry.services.token_state import TokenState, token_state

_REFUSED = "You have no active grant with this id."
_NOT_YOURS = NotFoundError("You have no such token.")
_BY_KEY_AND_ID = (
    "SELECT {}, CAST(g.capabilities AS text), CAST(g.envelope AS text),"  # noqa: S608 — our own text
    " (SELECT pair.key_version FROM registry_pairwisesubject pair"
    " WHERE pair.human_id = a.human_id AND pair.service_provider_id = g.service_provider_id),"
    f" {DISABLED_KEYS}, EXISTS (SELECT 1 FROM registry_barredkey barred WHERE barred.jkt = a.jkt),"
    f" {SEAL_ENDED}"
    " FROM registry_agent a LEFT JOIN registry_human h ON h.id = a.human_id"
    " LEFT JOIN registry_grant g ON g.id = %s AND g.agent_id = a.id"
    " LEFT JOIN registry_serviceprovider s ON s.id = g.service_provider_id WHERE a.jkt = %s"
)
_CALLER_AND_GRANT = SelectQuery(
    _BY_KEY_AND_ID,
    a=Columns(Agent, {"status", "human_id", "jkt", "expires_at", "seal"}),
    h=Columns(Human, {"status"}),
    g=Columns(Grant, {"agent_id", "service_provider_id", "status", "version", "valid_until"}),
    s=Columns(ServiceProvider, {"audience", "require_nonce", "status"}),
)
_INSERT = (
    "INSERT INTO registry_token (id, jti, grant_id, grant_version, jkt, claims, issued_at, "
    "expires_at)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
)


class GrantRows(NamedTuple):
    """A grant and the rows behind it, with the columns a token needs; two of them as JSON texts.

    `subject_version` is the version of the subject key that makes the human's `sub` there; None
    before their first token. `disabled_receipt_keys` is DISABLED_KEYS of
    `registry.services.approval_receipt_check`. The agent is sealed.
    """

    agent: Agent
    human: Human | None
    grant: Grant
    service_provider: ServiceProvider
    capabilities: str
    envelope: str
    subject_version: str | None
    disabled_receipt_keys: int


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token whose row and event are written; once they are committed, it may be signed."""

    jti: str
    claims: Mapping[str, Any]
    expires_in: int


def caller_and_basis(jkt: str, grant_id: str) -> tuple[Agent | None, GrantRows | None]:
    """The agent that may call with this key (`agent_key_lookup`), and this grant of it."""
    try:
        own = parse_id(grant_id)
    except ValueError:
        own = None
    for *row, barred, seal_ended in _CALLER_AND_GRANT.ask(own, jkt):
        agent, _, grant, *_ = row
        if may_call(agent, barred=barred, seal_ended=seal_ended):
            return agent, None if grant is None else GrantRows(*row)
    return None, None


def issue_token(
    *, agent: Agent, grant_id: str, actor: Actor, now: datetime, basis: GrantRows | None = None
) -> IssuedToken:
    """Write the row and the event of a token in one statement (docs/protocol.md section 7).

    The token gives exactly what the grant's row says. It is signed only after the commit, so that
    no token exists whose issue is not on record. A crash in between leaves a row without a token,
    which no caller can use. `basis` is what this call read with the caller; None: it is read here.

    Raises the same InvalidGrantError for a grant that is unknown, another's or not active, and for
    an inactive agent, human or service provider.
    """
    if basis is None:
        _, basis = caller_and_basis(agent.jkt, grant_id)
    if basis is None:
        raise InvalidGrantError(_REFUSED)
    claims, expires_at = _claims(basis, now)
    grant, jti = basis.grant, str(claims["jti"])
    record(
        act=_intent(basis, claims, now, expires_at),
        kind=kinds.TOKEN_ISSUED,
        actor=actor,
        at=now,
        agent_id=grant.agent_id,
        human_id=basis.agent.human_id,
        service_provider_id=grant.service_provider_id,
        grant_id=grant.id,
        token_jti=jti,
        data={"grant_version": grant.version, "iat": claims["iat"], "exp": claims["exp"]},
    )
    # Under an Idempotency-Key, the row is not committed yet: the caller's transaction is open.
    fault_point("issue.after_intent")
    return IssuedToken(jti, claims, claims["exp"] - int(now.timestamp()))


def sign_issued(claims: Mapping[str, Any], now: datetime) -> str:
    """Sign the claims of a committed row. Raises TemporarilyUnavailableError if no key answers."""
    fault_point("issue.after_commit")
    issued_at, expires_at = int(claims["iat"]), int(claims["exp"])
    token = sign_token(claims, token_signer(issued_at=issued_at, expires_at=expires_at, now=now))
    fault_point("issue.after_signature")
    return token


def issued_again(jti: str, now: datetime) -> IssuedToken:
    """The stored claims of an earlier call with the same Idempotency-Key, if they are still usable.

    Raises IdempotencyExpiredError if the token ended or was revoked, InvalidGrantError if its
    grant, agent, human or service provider is no longer active.
    """
    state = token_state(jti)
    token = state.token
    expires_in = int(token.expires_at.timestamp()) - int(now.timestamp())
    if expires_in <= 0 or token.revoked_at is not None:
        raise IdempotencyExpiredError(
            "The token of that call has ended. Ask with a new Idempotency-Key."
        )
    if state.refusal(now) is not None:
        raise InvalidGrantError(_REFUSED)
    return IssuedToken(token.jti, token.claims, expires_in)


def revoke_token(*, jti: str, actor: Actor, now: datetime) -> bool:
    """Revoke the token permanently. False if it is unknown or was revoked before."""
    with transaction.atomic():
        if not Token.objects.filter(jti=jti, revoked_at=None).update(revoked_at=now):
            return False
        publish_change(Subject.TOKEN, jti, now=now)
        state = token_state(jti)
        record(
            kind=kinds.TOKEN_REVOKED,
            actor=actor,
            at=now,
            agent_id=state.agent.id,
            human_id=state.agent.human_id,
            service_provider_id=state.service_provider.id,
            grant_id=state.grant.id,
            token_jti=jti,
        )
        fault_point("revoke.before_commit")
        transaction.on_commit(lambda: fault_point("revoke.after_commit"))
    return True


def revoke_presented_token(
    *, untrusted_token: str, caller: Agent | ServiceProvider, actor: Actor, now: datetime
) -> None:
    """Revoke a token presented by its agent or its audience (RFC 7009); any other stays unchanged.

    Only the signed token counts: its `jti` alone, which others may have seen, is no credential. A
    token the caller may not revoke and a string that is no token of ours get the same answer and
    event, so that neither tells whether a stranger's token exists. Raises
    TemporarilyUnavailableError.
    """
    state = _state_of_presented(untrusted_token, now)
    if state is not None:
        owner = state.agent.pk if isinstance(caller, Agent) else state.service_provider.pk
        if owner == caller.pk:
            revoke_token(jti=state.token.jti, actor=actor, now=now)
            return
    whose: dict[str, Any] = {"service_provider_id": caller.pk}
    if isinstance(caller, Agent):
        whose = {"agent_id": caller.pk, "human_id": caller.human_id}
    record_refusal(
        kind=kinds.REQUEST_REFUSED,
        actor=actor,
        at=now,
        error=_NOT_YOURS,
        route="POST v1/revoke",
        **whose,
    )


def _state_of_presented(untrusted_token: str, now: datetime) -> TokenState | None:
    """The state of a presented token, even if it has ended; None if we did not sign it."""
    try:
        jws = parse_compact(untrusted_token)
        key = token_keys(now=now).get(str(jws.header.get("kid")))
        if key is None:
            return None
        return token_state(
            str(verify_jws(jws, public_key_of(key), expected_typ=TYP).claims.get("jti"))
        )
    except (EncodingError, InvalidSignatureError, InvalidTokenError):
        return None


def _intent(
    basis: GrantRows, claims: Mapping[str, Any], now: datetime, expires_at: datetime
) -> Statement:
    grant, jti, text = basis.grant, claims["jti"], json.dumps(claims)
    return Statement(
        _INSERT, (new_id(), jti, grant.id, grant.version, basis.agent.jkt, text, now, expires_at)
    )


def _claims(basis: GrantRows, now: datetime) -> tuple[dict[str, Any], datetime]:
    """The claims, from the grant's row alone, and the token's end: the earliest of its limits."""
    agent, human, grant, service_provider, *granted, subject_version, _ = basis
    good = (
        grant.status_at(now) == Grant.Status.APPROVED
        and agent.is_active_at(now)
        and service_provider.is_active
        and human is not None
        and human.is_active
        and _is_covered(basis)
    )
    if not good:
        raise InvalidGrantError(_REFUSED)
    assert grant.valid_until is not None
    assert human is not None
    capabilities, envelope = _parse_terms(*granted)
    issued_at = int(now.timestamp())
    life = min(MAX_TOKEN_SECONDS, envelope.max_session_seconds or MAX_TOKEN_SECONDS)
    end = min(
        issued_at + life, int(grant.valid_until.timestamp()), int(agent.expires_at.timestamp())
    )
    if end <= issued_at:
        raise InvalidGrantError(_REFUSED)
    claims = build_claims(
        issuer=settings.ISSUER,
        audience=service_provider.audience,
        subject=pairwise_subject(human.pk, service_provider.pk, version=subject_version),
        agent_id=str(agent.pk),
        jti=_new_jti(),
        issued_at=issued_at,
        expires_at=end,
        jkt=agent.jkt,
        grant_id=str(grant.pk),
        grant_version=grant.version,
        capabilities=capabilities,
        has_envelope=envelope != EMPTY,
    )
    return claims, datetime.fromtimestamp(end, tz=now.tzinfo)


def _is_covered(basis: GrantRows) -> bool:
    """Whether a human signed exactly these terms and they stand: a row alone gives nothing."""
    terms = terms_of(
        basis.grant,
        basis.agent,
        basis.service_provider,
        is_sealed=True,
        capabilities=basis.capabilities,
        envelope=basis.envelope,
    )
    return terms is not None and PROVED.stands(terms, disabled_keys=basis.disabled_receipt_keys)


@lru_cache(maxsize=1024)
def _parse_terms(capabilities: str, envelope: str) -> tuple[tuple[Capability, ...], Envelope]:
    return parse_capabilities(json.loads(capabilities)), parse_envelope(json.loads(envelope))


def _new_jti() -> str:
    # Fully random, unlike our row ids: it reveals nothing about its time or neighbours.
    return str(uuid.uuid4())
