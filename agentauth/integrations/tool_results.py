"""The result of a tool for the model: one line of JSON with `status` and `note`."""

import json

import httpx

from agentauth.protocol.errors import AgentAuthError, CooldownActiveError
from agentauth.sdk.errors import NoGrantError
from agentauth.sdk.redacted_response import shown_content


def result_line(status: str, note: str, **members: object) -> str:
    """The line, without the members that are None."""
    shown = {name: value for name, value in members.items() if value is not None}
    return json.dumps({"status": status, "note": note, **shown}, ensure_ascii=False)


def answer_line(response: httpx.Response) -> str:
    """What the service provider answered."""
    shown, is_cut = shown_content(response)
    note = f"The service answered {response.status_code}."
    status = "answered"
    if response.has_redirect_location:
        status, note = "refused", "The service redirects. Redirects are not followed."
    elif response.is_error:
        status = "refused"
    return result_line(
        status,
        note,
        http_status=response.status_code,
        from_service=shown,
        truncated=is_cut or None,
    )


def no_grant_line(error: NoGrantError | CooldownActiveError) -> str:
    """No grant covers the call: `denied` if a person said no to it."""
    if isinstance(error, CooldownActiveError) or error.reason in {"denied", "narrowed"}:
        note = "A person said no to this. Use this tool again only if the person wants it."
        return result_line(
            "denied", note, error=error.code, reason=error.reason, why=error.description
        )
    return failure_line(error)


def failure_line(error: AgentAuthError) -> str:
    """The call was not made, or its answer is not known."""
    return result_line(
        "failed",
        error.description,
        error=error.code,
        reason=error.reason,
        violations=error.fields.get("violations"),
    )


def timeout_line(*, waits_for_person: bool) -> str:
    """There was no decision or answer in time."""
    if waits_for_person:
        note = "A person has the link and has not decided yet."
    else:
        note = "There was no answer in time. The call may have been done."
    return result_line(
        "waiting_for_person" if waits_for_person else "failed",
        f"{note} Use the tool again with the same arguments to continue the same operation.",
    )
