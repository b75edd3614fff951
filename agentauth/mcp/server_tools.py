"""What the tools of the MCP server do, on `AgentAuthClient`; knows nothing of MCP.

Tokens, proofs and the key stay inside: outcomes hold links for people and service providers'
answers alone.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import httpx

from agentauth.protocol.behavioural_envelope import Envelope, parse_envelope
from agentauth.protocol.capability import Action, Capability, parse_action
from agentauth.protocol.capability_comparison import narrows
from agentauth.protocol.errors import (
    AgentAuthError,
    CooldownActiveError,
    InvalidRequestError,
    ManifestError,
    NotFoundError,
)
from agentauth.sdk.client import AgentAuthClient
from agentauth.sdk.errors import AmbiguousGrantError, GrantPendingError, NoGrantError
from agentauth.sdk.grant_choice import waits_for_human
from agentauth.sdk.own_manifest import read_manifest
from agentauth.sdk.redacted_response import MAX_ANSWER_BYTES, shown_content, without_secrets
from agentauth.sdk.registry_answers import Grant, ServiceProvider
from agentauth.sdk.url_checks import path_segment

from .argument_checks import check_call, read_capabilities
from .options import Options
from .outcomes import Outcome, Waiting, failure, mistake, shortened

_MAX_GRANTS: Final = 20
_ENDABLE: Final = ("approved", "suspended", "pending")


class Access:
    """One agent, as the tools see it: ask for access, look, call, give it back."""

    def __init__(self, options: Options, client: AgentAuthClient | None = None) -> None:
        self._options = options
        self._client = client or AgentAuthClient(
            options.registry_url,
            keys=options.keys(),
            enrolment_code=options.enrolment_code,
            name=options.name,
        )

    # ---- the four tools

    async def request(
        self,
        service: str,
        capabilities: Sequence[object],
        limits: Mapping[str, object] | None,
        reason: str,
        *,
        ask_again: bool = False,
    ) -> Outcome:
        """Ask a person for `capabilities` at `service`, unless they were granted before.

        What a person denied is asked again only with `ask_again`.
        """
        try:
            asked = read_capabilities(capabilities)
            envelope = parse_envelope(dict(limits or {}), "limits")
            provider = await self._provider(service)
            grant = await self._obtain(service, asked, envelope, reason, ask_again=ask_again)
        except NotFoundError:
            return _unknown(service)
        except (NoGrantError, CooldownActiveError) as error:
            return _said_no(service, error)
        except AgentAuthError as error:
            return failure(error)
        return self._granted(grant, provider.name)

    async def decided(self, waited: Waiting) -> Outcome:
        """The grant that was waited for. Does not ask again, whatever became of it."""
        try:
            grant = await self._client.get_grant(waited.id or "")
        except AgentAuthError as error:
            return failure(error)
        service = _row(grant, None, None)["service"]
        return self._granted(replace(grant, claim_code=waited.code), str(service), waited)

    async def status(self, service: str | None, wait_seconds: int) -> Outcome:
        """The agent's grants, newest first; waits for a pending one up to `wait_seconds`."""
        try:
            provider = await self._provider(service) if service is not None else None
            grants = await self._grants(provider)
            pending = [grant for grant in grants if grant.status == "pending"]
            if pending and wait_seconds > 0:
                await self.wait(Waiting("grant", pending[0].grant_id, "", ""), wait_seconds)
                grants = await self._grants(provider)
            agent = None
            if any(grant.status == "pending" for grant in grants):
                agent = await self._client.register()
        except NotFoundError:
            return _unknown(service or "")
        except AgentAuthError as error:
            return failure(error)
        code = agent.claim_code if agent else None
        claim = agent.claim_url if agent else None
        rows = [_row(grant, claim, code) for grant in grants[:_MAX_GRANTS]]
        where = f" at {service}" if service else ""
        counted = ", ".join(shortened(f"{row['service']}: {row['status']}") for row in rows)
        text = f"Access{where}: {counted}." if rows else f"Nothing was requested{where} yet."
        return Outcome(text, {"status": "ok", "access": rows})

    async def call(
        self,
        service: str,
        method: str,
        path: str,
        body: object,
        action: Mapping[str, object] | None,
        idempotency_key: str | None,
    ) -> Outcome:
        """Call a service provider. A repetition with the same key is the same operation."""
        try:
            method = check_call(method, path, body, idempotency_key)
            act = parse_action(dict(action)) if action is not None else None
            await self._provider(service)
            if self._client.identity().agent_id is None:
                raise NoGrantError("This agent has not asked for anything yet.")  # noqa: TRY301 — the answer is below
            return await self._call(service, method, path, body, act, idempotency_key)
        except NotFoundError:
            return _unknown(service)
        except GrantPendingError as error:
            key = _shown_key(idempotency_key)
            return self._waits(
                Waiting(
                    "grant",
                    error.grant_id,
                    error.approval_url,
                    f"This agent asks for access to {service}.",
                    error.claim_code,
                ),
                key,
            )
        except (NoGrantError, AmbiguousGrantError) as error:
            return Outcome(
                _missing(error, service),
                {"status": "failed", "error": error.code, **_reasons(error)},
                is_error=True,
            )
        except AgentAuthError as error:
            return failure(error)

    async def revoke(self, service: str, grant_id: str | None) -> Outcome:
        """Give back every grant at `service`, or one; withdraws what is still pending."""
        try:
            provider = await self._provider(service)
            grants = await self._grants(provider)
            ending = [
                grant
                for grant in grants
                if grant.status in _ENDABLE and grant_id in {None, grant.grant_id}
            ]
            for grant in ending:
                if grant.status == "pending":
                    await self._client.withdraw_grant(grant)
                else:
                    await self._client.revoke_grant(grant)
        except NotFoundError:
            return _unknown(service)
        except AgentAuthError as error:
            return failure(error)
        ended = [grant.grant_id for grant in ending]
        if not ended:
            return mistake(f"There is no access at {service} to give back.")
        return Outcome(
            f"Access at {service} has ended. Tokens issued before are refused.",
            {"status": "revoked", "grant_ids": ended},
        )

    # ---- waiting for a person

    async def wait(self, waiting: Waiting, seconds: float) -> bool:
        """Wait for the person's decision, at most `seconds`. Was there one?"""
        if waiting.id is None:
            return False
        try:
            async with asyncio.timeout(seconds):
                if waiting.kind == "grant":
                    await self._client.wait_for_decision(waiting.id)
                else:
                    await self._client.wait_for_confirmation(waiting.id)
        except (TimeoutError, AgentAuthError):
            # The next attempt reports what went wrong.
            return False
        return True

    # ---- inside

    async def _obtain(
        self,
        service: str,
        asked: Sequence[Capability],
        envelope: Envelope,
        reason: str,
        *,
        ask_again: bool,
    ) -> Grant:
        """The grant with these terms. The one place that asks the registry for one."""
        client: Any = self._client
        limits = envelope if envelope != Envelope() else None
        for declared in (False, True):
            try:
                # `ensure_grant` also reuses a grant that covers more, and asks only for the rest.
                found: Grant = await client.ensure_grant(
                    service, asked, envelope=limits, reason=reason, ask_again=ask_again
                )
            except ManifestError:
                if declared:
                    raise
                await client.renew_manifest(self._declared(asked))
            else:
                return found
        raise AssertionError  # the second try returns or raises

    def _declared(self, asked: Sequence[Capability]) -> list[Capability]:
        """What the manifest declares, and `asked`: a person still approves each grant."""
        compact = self._client.identity().manifest
        if compact is None:
            return list(asked)
        known = read_manifest(compact, registry=self._client.registry_url).capabilities
        return [*known, *(each for each in asked if not narrows([each], known))]

    async def _provider(self, service: str) -> ServiceProvider:
        """Look the service provider up. Raises NotFoundError if it may not be used here."""
        path_segment(service)
        if self._options.services and service not in self._options.services:
            raise NotFoundError
        if self._client.identity().agent_id is None and self._client.identity().manifest is None:
            # Only a registered agent may look; the manifest comes with the first request.
            return ServiceProvider(id="", name=service, audience="")
        return await self._client.service_provider(service)

    async def _grants(self, provider: ServiceProvider | None) -> list[Grant]:
        if self._client.identity().agent_id is None:
            return []
        grants = await self._client.list_grants()
        return [
            grant
            for grant in reversed(grants)
            if (provider is None or grant.service_provider == provider.id) and self._may_use(grant)
        ]

    def _may_use(self, grant: Grant) -> bool:
        """May the grant's service be used here? All may, unless the options name some."""
        named: Any = grant.answer.get("service_provider")
        provider = named if isinstance(named, Mapping) else {}
        allowed = self._options.services
        return not allowed or bool({provider.get("id"), provider.get("slug")} & set(allowed))

    def _granted(self, grant: Grant, service: str, waited: Waiting | None = None) -> Outcome:
        row, service = _row(grant, None, grant.claim_code), shortened(service)
        if grant.status == "approved":
            less = " The person granted less than requested." if grant.narrowed else ""
            return Outcome(f"Access to {service} is approved.{less}", row)
        if waited is not None and waits_for_human(grant):
            return self._waits(waited, {})
        if grant.approval_url is not None:
            question = f"This agent asks for access to {service}."
            waiting = Waiting(
                "grant", grant.grant_id, grant.approval_url, question, grant.claim_code
            )
            return self._waits(waiting, {})
        why = f" The reason given: {shortened(grant.deny_reason)}" if grant.deny_reason else ""
        return Outcome(
            f"Access to {service} is {grant.status}.{why} Do not ask again unless the person "
            "wants it.",
            row,
            is_error=True,
        )

    def _waits(self, waiting: Waiting, more: Mapping[str, object]) -> Outcome:
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

    async def _call(
        self,
        service: str,
        method: str,
        path: str,
        body: object,
        action: Action | None,
        idempotency_key: str | None,
    ) -> Outcome:
        response = await self._client.call(
            service,
            method,
            path,
            action=action,
            json=body,
            idempotency_key=idempotency_key,
            max_bytes=MAX_ANSWER_BYTES,
        )
        return self._answered(service, response, idempotency_key)

    def _answered(self, service: str, response: httpx.Response, key: str | None) -> Outcome:
        shown, truncated = shown_content(response)
        body: dict[str, object] = {
            "status": "answered",
            "http_status": response.status_code,
            "content_type": without_secrets(response.headers.get("Content-Type", ""))[:200],
            "body": shown,
            **({"truncated": True} if truncated else {}),
            **_shown_key(key),
        }
        refused = shown if isinstance(shown, dict) else {}
        if response.status_code == httpx.codes.FORBIDDEN and (
            waiting := self._step_up(service, refused)
        ):
            return self._waits(waiting, _shown_key(key))
        if response.is_redirect:
            body["status"] = "redirected"
            return Outcome(
                "The service redirects. Redirects are not followed.", body, is_error=True
            )
        if response.is_error:
            body["status"] = "refused"
            why = refused.get("error_description")
            return Outcome(
                f"The service answered {response.status_code}."
                f"{' ' + shortened(why) if isinstance(why, str) else ''}",
                body,
                is_error=True,
            )
        return Outcome(f"The service answered {response.status_code}.", body)

    def _step_up(self, service: str, refused: Mapping[str, object]) -> Waiting | None:
        """The link for a person, if the answer asks for one.

        It is built from the registry's address: the service provider could send the person to a
        page of its own.
        """
        if refused.get("error") != "step_up_required" or refused.get("reason") not in {
            "confirm_above",
            "human_offline",
        }:
            return None
        confirmation_id = refused.get("confirmation_id")
        registry = self._client.registry_url
        if isinstance(confirmation_id, str):
            try:
                url = f"{registry}/confirmations/{path_segment(confirmation_id)}/"
            except InvalidRequestError:
                return None
            question = f"This agent asks you to confirm one transaction at {service}."
            return Waiting("confirmation", confirmation_id, url, question)
        question = f"A call to {service} needs you to be present at the registry."
        return Waiting("presence", None, f"{registry}/", question)


def _row(grant: Grant, claim_url: str | None, code: str | None) -> dict[str, object]:
    """One grant as the client sees it."""
    named: Any = grant.answer.get("service_provider")
    provider = named if isinstance(named, Mapping) else {}
    terms: Any = grant.answer.get("granted") or grant.answer.get("requested") or {}
    terms = terms if isinstance(terms, Mapping) else {}
    row: dict[str, object] = {
        "grant_id": grant.grant_id,
        "status": grant.status,
        "service": provider.get("slug") or provider.get("id") or grant.service_provider,
        "audience": provider.get("audience"),
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


def _shown_key(key: str | None) -> dict[str, object]:
    return {"idempotency_key": key} if key else {}


def _unknown(service: str) -> Outcome:
    named = service if len(service) <= 80 else f"{service[:80]}…"  # noqa: PLR2004 — an id's length
    return mistake(f"There is no service {named!r} here. Use its id or slug at the registry.")


def _reasons(error: AgentAuthError) -> dict[str, object]:
    violations = error.fields.get("violations")
    return {
        **({"reason": error.reason} if error.reason else {}),
        **({"violations": violations} if violations else {}),
    }


def _missing(error: AgentAuthError, service: str) -> str:
    if isinstance(error, AmbiguousGrantError):
        return f"Several grants at {service} differ. Say what the call does in `action`."
    if error.reason == "constraint":
        return f"The access to {service} covers this only within limits that the call breaks."
    if error.reason in {"denied", "revoked", "suspended"}:
        return f"The access to {service} for this call is {error.reason}, by a person's decision."
    return f"No access to {service} covers this call. Call request_access first."


def _said_no(service: str, error: NoGrantError | CooldownActiveError) -> Outcome:
    """A person decided before, and not for this."""
    status = "denied" if isinstance(error, CooldownActiveError) else error.reason or "failed"
    less = "The person granted less than this" if status == "narrowed" else "A person said no"
    after = error.fields.get("retry_after")
    return Outcome(
        f"{less} at {service}. Do not ask again unless they want it; call access_status to see "
        "what you may use.",
        {
            "status": status,
            "error": error.code,
            **({"retry_after": after} if after is not None else {}),
        },
        is_error=True,
    )
