"""Sentences of docs/protocol.md that contain a number, built from the constants that enforce it."""

import os
from datetime import timedelta
from typing import Final
from unittest.mock import patch

from django.conf import settings

from agentauth.postgresql.base import SHORT_SECONDS, DatabaseWrapper
from agentauth.protocol import (
    agent_manifest,
    argument_constraint,
    capability,
    catalogue,
    dpop,
    encoding,
    jose,
    process_key_certificate,
    token,
    untrusted_text,
    url_normalization,
)
from agentauth.protocol.behavioural_envelope import DEFAULT_MAXIMA
from approvals import sessions
from approvals.services.challenges import CHALLENGE_LIFE
from audit import events_api as audit_api
from audit.log.refusal_counts import RECORDED_PER_MINUTE
from kms.lifetimes import PUBLISHED_BEFORE_USE, TOKEN_OVERLAP
from registry import caller_limits
from registry.api.base_view import DEFAULT_PAGE, MAX_PAGE
from registry.api.long_poll import MAX_WAIT_SECONDS
from registry.models.grants import PENDING_LIFE
from registry.services import (
    agent_claims,
    catalogues,
    enrolment_codes,
    grant_requests,
    idempotency,
    nonces,
    poll_interval,
)
from registry.services.expiry import UNCLAIMED_KEPT_FOR
from verifier import requests
from verifier.api import VerifyBatchView
from verifier.services import batch, confirmation_lifecycle, replay_epochs
from verifier.stores import group_commit, stored_answers, transaction_batch

# The module is gunicorn's configuration and changes the environment, which must not leak into this
# process.
with patch.dict(os.environ):
    from agentauth.server import request_framing, web_gunicorn

_LIMITS: Final = caller_limits.limits()


def minutes(length: timedelta) -> int:
    return int(length.total_seconds() // 60)


def hours(length: timedelta) -> int:
    return minutes(length) // 60


def seconds(length: timedelta) -> int:
    return int(length.total_seconds())


def _calls(sort: str) -> str:
    return f"{_LIMITS[sort].per_minute:,} | {_LIMITS[sort].burst}"


_COOL: Final = [hours(each) for each in grant_requests.COOLDOWNS]
FACTS: Final = [
    # 0
    f"at most {encoding.MAX_BODY_BYTES:,} bytes and {encoding.MAX_DEPTH} levels deep",
    f"at most {settings.DATA_UPLOAD_MAX_MEMORY_SIZE:,} bytes and",
    (
        f"One header line may have {web_gunicorn.limit_request_field_size:,} bytes, a request line "
        f"{web_gunicorn.limit_request_line:,}, a request "
        f"{web_gunicorn.limit_request_fields} headers"
    ),
    (
        f"has not arrived within {request_framing.REQUEST_SECONDS} s, or its head within "
        f"{request_framing.HEAD_SECONDS} s,"
    ),
    f"the first answer again, for {hours(idempotency.KEPT_FOR)} h",
    f"| by a call still running | waits up to {group_commit._PATIENCE_SECONDS} s for it, then 409",
    f"| an agent that is claimed, on the native API | {_calls(caller_limits.AGENT)} |",
    f"| a human, on pages | {_calls(caller_limits.HUMAN)} |",
    f"unclaimed agents | {_calls(caller_limits.ADDRESS)} |",
    f"claim pages | {_calls(caller_limits.ENTRY)} |",
    f"calls without credentials | {_calls(caller_limits.STRANGERS)} |",
    f"| a service provider | {_LIMITS[caller_limits.SERVICE_PROVIDER].per_minute:,}, or as",
    # 1
    f"at most {jose.MAX_BYTES:,} bytes (receipts 65,536)",
    # 2
    f"1 to {dpop.MAX_JTI_LENGTH} characters, at least 96 random bits",
    f"at most {dpop.WINDOW_SECONDS} s from the server's clock, either way",
    f"is remembered until `iat` + {dpop.SPEND_SECONDS} s",
    f"It is taken for {nonces.STEP_SECONDS} to {2 * nonces.STEP_SECONDS} s",
    f"For {replay_epochs.CAREFUL_SECONDS} s after the verifier has begun",
    f"more than {url_normalization.MAX_URL_LENGTH:,} characters",
    # 3
    f"| `actions` | at most {catalogue.MAX_ENTRIES} entries,",
    f"| `label` | 1 to {catalogue.MAX_LABEL} characters; `sentence` 1 to {catalogue.MAX_SENTENCE}",
    f"| `arguments` | optional, at most {catalogue.MAX_ARGUMENTS}:",
    f"an optional `unit` of 1 to {catalogue.MAX_UNIT} characters",
    f"`format` present, has at most {catalogue.MAX_CATALOGUE:,} bytes",
    (
        f"| `icon` | optional: {', '.join(f'`{each}`' for each in catalogue.ICONS[:-1])} or "
        f"`{catalogue.ICONS[-1]}` |"
    ),
    (
        f"More than {catalogues.MAX_PROPOSED} proposals within "
        f"{hours(catalogues.PROPOSED_WITHIN)} hours"
    ),
    (
        f"A list has 1 to {capability.MAX_CAPABILITIES} capabilities, a capability at most "
        f"{argument_constraint.MAX_CONSTRAINTS} "
        f"constraints (operators counted), `in` and `not_in` 1 to {argument_constraint.MAX_ITEMS} "
        "different values, texts at most "
        f"{argument_constraint.MAX_TEXT:,} characters"
    ),
    f"at most {capability.MAX_RESOURCE} characters, case-sensitive",
    f"arguments at most {capability.MAX_ARGUMENTS} scalars",
    f"`transact`, which has at most {capability.MAX_TRANSACT:,} bytes of RFC 8785 JSON",
    f"| {DEFAULT_MAXIMA.max_requests_per_minute:,} each |",
    f"in its window twice | {DEFAULT_MAXIMA.allowed_time_windows} |",
    f"UTC if absent | {DEFAULT_MAXIMA.budgets} |",
    f"| life of a token | {DEFAULT_MAXIMA.max_session_seconds:,} |",
    # 4
    f"stands in the set for {seconds(PUBLISHED_BEFORE_USE)} s before it signs",
    f"stays for {seconds(TOKEN_OVERLAP)} s",
    f"at most {process_key_certificate.MAX_CERTIFICATE_BYTES:,} bytes. Its header",
    f"seconds; at most {process_key_certificate.MAX_CERTIFICATE_SECONDS:,} apart",
    f"a token it signs, 1 to {token.MAX_TOKEN_SECONDS}",
    f"now ≥ `nbf` − {token.CLOCK_TOLERANCE_SECONDS}, now < `exp`",
    # 5
    (
        f"`iat` at most {agent_manifest.MAX_AHEAD_SECONDS} s ahead, `exp` ahead and at most "
        f"{agent_manifest.MAX_MANIFEST_SECONDS // 86_400} days"
    ),
    f"| 1 to {untrusted_text.MAX_NAME} characters: NFC",
    f"at most {untrusted_text.MAX_DESCRIPTION} characters under the same rules",
    f"one agent, {minutes(enrolment_codes.LIFE)} minutes, made for a human",
    # 6
    (
        f'"lifetime_seconds": {grant_requests.MIN_LIFE_SECONDS} to '
        f"{grant_requests.MAX_LIFE_SECONDS}?}}"
    ),
    f"The life is {grant_requests.DEFAULT_LIFE_SECONDS // 86_400} days if not named",
    (
        f"{grant_requests.MAX_PENDING_PER_AGENT} waiting per agent, "
        f"{grant_requests.MAX_PENDING_PER_HUMAN} per human"
    ),
    f"{grant_requests.MAX_PENDING_UNCLAIMED} for an unclaimed agent",
    (
        f"{_COOL[0]} h after the first denial, {_COOL[1]} h after the second in a row, {_COOL[2]} "
        "h after the third"
    ),
    (
        f"each time adds {poll_interval.SLOWER_BY_SECONDS} s, "
        f"up to {poll_interval.MAX_INTERVAL_SECONDS}"
    ),
    f"`GET /v1/grants?after=&limit=1..{MAX_PAGE}`: newest first, {DEFAULT_PAGE} a page",
    f"`GET /v1/grants/{{id}}?wait=0..{MAX_WAIT_SECONDS}`",
    f"stays at the server, for {minutes(CHALLENGE_LIFE)} minutes and one use",
    # 7
    f"Signing input at most {token.MAX_SIGNING_INPUT:,} bytes",
    f"`nbf` = `iat` − {token.CLOCK_TOLERANCE_SECONDS}; life at most {token.MAX_TOKEN_SECONDS} s",
    # 8
    f"| 1 to {requests.MAX_KEY} characters; the agent's name",
    f"`iat` more than {token.CLOCK_TOLERANCE_SECONDS} s ahead",
    f"others {hours(transaction_batch.OPERATION_LIFE)} h",
    f"kept for {seconds(stored_answers.KEPT_FOR)} s",
    (
        f'{{"requests": [1 to {batch.MAX_REQUESTS} bodies as above]}}`, at most '
        f"{VerifyBatchView.max_body_bytes:,} bytes and "
        f"{encoding.MAX_DEPTH} levels"
    ),
    f"usable for {minutes(confirmation_lifecycle.USABLE_LIFE)} minutes once signed",
    f"At most {confirmation_lifecycle.MAX_PENDING} wait per grant",
    f"`GET /v1/confirmations/{{id}}?wait=0..{MAX_WAIT_SECONDS}`",
    (
        f"`GET /v1/confirmations?after=&limit=1..{MAX_PAGE}`: all of the agent's own, newest "
        f"first, {DEFAULT_PAGE} a page"
    ),
    # 9
    f"the first {RECORDED_PER_MINUTE} a minute",
    f"limit=1..{audit_api.MAX_LIMIT}`",
    f"{audit_api.DEFAULT_LIMIT} a page, in the order of the log",
    # 11
    f"{minutes(sessions.IDLE)} minutes after the human's last act",
    f"{hours(sessions.LIFE)} hours after the sign-in",
]
# Spelled out in words on the page, so compared by hand.
assert (timedelta(hours=1), 5, 5) == (
    agent_claims.CLAIM_LIFE,
    agent_claims.MAX_CLAIM_FAILURES,
    enrolment_codes.MAX_FAILURES,
)
assert (timedelta(hours=1), timedelta(hours=1)) == (
    PENDING_LIFE,
    confirmation_lifecycle.PENDING_LIFE,
)
assert timedelta(days=7) == UNCLAIMED_KEPT_FOR
# One limit for waiting on an Idempotency-Key, at the native API and at verify.
_LOCK_MS: Final = round(group_commit._PATIENCE_SECONDS * 1000)
assert f"-c lock_timeout={_LOCK_MS} " in DatabaseWrapper.short_options(SHORT_SECONDS)["options"]
