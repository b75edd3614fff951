"""Outcomes of `server_tools.Access`: a grant, a service's response, or why there was no call.

Tokens, proofs and keys never reach an outcome: it holds only what the model or a person needs
(links, claim codes, grants and their terms, service providers' answers).
"""

from collections.abc import Mapping
from typing import Any

import httpx

from agentauth.protocol.errors import AgentAuthError, CooldownActiveError, InvalidRequestError
from agentauth.sdk.errors import AmbiguousGrantError, NoGrantError
from agentauth.sdk.grant_choice import waits_for_human
from agentauth.sdk.redacted_response import shown_content, without_secrets
from agentauth.sdk.registry_answers import Grant
from agentauth.sdk.url_checks import path_segment

from .outcomes import Outcome, Waiting, mistake, shortened

# ---- grants


def grant_state(grant: Grant, service: str, waited: Waiting | None = None) -> Outcome:
    """The state of one grant. If it waits for a person: with `waited`, the link as shown before."""
    row, service = grant_row(grant, None, grant.claim_code), shortened(service)
    if grant.status == "approved":
        less = " The person granted less than requested." if grant.narrowed else ""
        return Outcome(f"Access to {service} is approved.{less}", row)
    if waits_for_human(grant) and waited is not None:
        return ask_person(waited, {})
    if waits_for_human(grant) and grant.approval_url is not None:
        question = f"This agent asks for access to {service}."
        return ask_person(
            Waiting("grant", grant.grant_id, grant.approval_url, question, grant.claim_code), {}
        )
    why = f" The reason given: {shortened(grant.deny_reason)}" if grant.deny_reason else ""
    return Outcome(
        f"Access to {service} is {grant.status}.{why} Do not ask again unless the person wants it.",
        row,
        is_error=True,
    )


def grant_row(grant: Grant, claim_url: str | None, code: str | None) -> dict[str, object]:
    """One grant as the client sees it. `claim_url` and `code` are the agent's, if unclaimed."""
    terms: Any = grant.answer.get("granted") or grant.answer.get("requested") or {}
    terms = terms if isinstance(terms, Mapping) else {}
    row: dict[str, object] = {
        "grant_id": grant.grant_id,
        "status": grant.status,
        "service": service_of(grant),
        "audience": named_provider(grant).get("audience"),
        "capabilities": terms.get("capabilities"),
        "limits": terms.get("envelope"),
        "valid_until": grant.valid_until,
        "deny_reason": grant.deny_reason,
    }
    if grant.status == "pending" and claim_url:
        row["approval_url"] = f"{claim_url}?grant={grant.grant_id}"
    elif grant.approval_url:
        row["approval_url"] = grant.approval_url
    if grant.status == "pending" and code:
        row["claim_code"] = code
    return {name: value for name, value in row.items() if value is not None}


def named_provider(grant: Grant) -> Mapping[str, Any]:
    """The members with which the registry names the grant's service provider."""
    named = grant.answer.get("service_provider")
    return named if isinstance(named, Mapping) else {}


def service_of(grant: Grant) -> str:
    """The slug of the grant's service provider, else its id."""
    provider = named_provider(grant)
    return str(provider.get("slug") or provider.get("id") or grant.service_provider)


# ---- a person must act


def ask_person(waiting: Waiting, more: Mapping[str, object]) -> Outcome:
    """Ask a person to open a link; `more` are further members of the body."""
    body: dict[str, object] = {
        "status": "waiting_for_person",
        "approval_url": waiting.url,
        **({"claim_code": waiting.code} if waiting.code else {}),
        **({f"{waiting.kind}_id": waiting.id} if waiting.id else {}),
        **more,
    }
    again = (
        " Then repeat the call with the same idempotency_key."
        if "idempotency_key" in more
        else " Then call access_status."
        if waiting.kind == "grant"
        else " Then repeat the call."
    )
    return Outcome(
        f"Waiting for a person. {waiting.message} {waiting.url}{again}", body, waiting=waiting
    )


def shown_key(key: str | None) -> dict[str, object]:
    """The idempotency key as a member of the body."""
    return {"idempotency_key": key} if key else {}


# ---- a service's response


def report_response(
    service: str, response: httpx.Response, key: str | None, *, registry_url: str
) -> Outcome:
    """The response of a service provider, or the link for a person if it asks for one."""
    shown, truncated = shown_content(response)
    body: dict[str, object] = {
        "status": "answered",
        "http_status": response.status_code,
        "content_type": without_secrets(response.headers.get("Content-Type", ""))[:200],
        "body": shown,
        **({"truncated": True} if truncated else {}),
        **shown_key(key),
    }
    members = shown if isinstance(shown, dict) else {}
    if response.status_code == httpx.codes.FORBIDDEN and (
        waiting := _step_up(service, members, registry_url)
    ):
        return ask_person(waiting, shown_key(key))
    if response.has_redirect_location:
        body["status"] = "redirected"
        return Outcome("The service redirects. Redirects are not followed.", body, is_error=True)
    if response.is_error:
        body["status"] = "refused"
        why = members.get("error_description")
        return Outcome(
            f"The service answered {response.status_code}."
            f"{' ' + shortened(why) if isinstance(why, str) else ''}",
            body,
            is_error=True,
        )
    return Outcome(f"The service answered {response.status_code}.", body)


def _step_up(service: str, members: Mapping[str, object], registry_url: str) -> Waiting | None:
    """What a person must do before the call can succeed; None if the response asks for nothing.

    The link is built from the registry's address: the service provider could send the person to a
    page of its own.
    """
    reason, confirmation_id = members.get("reason"), members.get("confirmation_id")
    if members.get("error") != "step_up_required" or reason not in {
        "confirm_above",
        "human_offline",
    }:
        return None
    if isinstance(confirmation_id, str):
        try:
            url = f"{registry_url}/confirmations/{path_segment(confirmation_id)}/"
        except InvalidRequestError:
            return None
        question = f"This agent asks you to confirm one transaction at {service}."
        return Waiting("confirmation", confirmation_id, url, question)
    need = "you to be present" if reason == "human_offline" else "your confirmation"
    question = f"A call to {service} needs {need} at the registry."
    return Waiting("presence", None, f"{registry_url}/", question)


# ---- no call, and no request


def unknown_service(service: str) -> Outcome:
    """The registry knows no such service, or the options exclude it."""
    named = service if len(service) <= 80 else f"{service[:80]}…"  # noqa: PLR2004 — an id's length
    return mistake(f"There is no service {named!r} here. Use its id or slug at the registry.")


def no_grant(error: NoGrantError | AmbiguousGrantError, service: str) -> Outcome:
    """No grant, or no single one, serves the call."""
    violations = error.fields.get("violations")
    return Outcome(
        _why_no_grant(error, service),
        {
            "status": "failed",
            "error": error.code,
            **({"reason": error.reason} if error.reason else {}),
            **({"violations": violations} if violations else {}),
        },
        is_error=True,
    )


def _why_no_grant(error: AgentAuthError, service: str) -> str:
    if isinstance(error, AmbiguousGrantError):
        return f"Several grants at {service} differ. Say what the call does in `action`."
    if error.reason == "constraint":
        return f"The access to {service} covers this only within limits that the call breaks."
    if error.reason in {"denied", "revoked", "suspended"}:
        return f"The access to {service} for this call is {error.reason}."
    return f"No access to {service} covers this call. Call request_access first."


def refused_before(service: str, error: NoGrantError | CooldownActiveError) -> Outcome:
    """Nothing was requested: a person already denied this, granted less, or suspended the grant."""
    status = "denied" if isinstance(error, CooldownActiveError) else error.reason or "failed"
    what = {
        "narrowed": "The person granted less than this",
        "suspended": "A person suspended the access to this",
    }.get(status, "A person said no")
    after = error.fields.get("retry_after")
    return Outcome(
        f"{what} at {service}. Do not ask again unless they want it; call access_status to see "
        "what you may use.",
        {
            "status": status,
            "error": error.code,
            **({"retry_after": after} if after is not None else {}),
        },
        is_error=True,
    )
