"""What the tools of the MCP server do, on `AgentAuthClient`; knows nothing of MCP."""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from agentauth.protocol.behavioural_envelope import Envelope, parse_envelope
from agentauth.protocol.capability import Capability, parse_action
from agentauth.protocol.capability_comparison import narrows
from agentauth.protocol.errors import (
    AgentAuthError,
    CooldownActiveError,
    ManifestError,
    NotFoundError,
)
from agentauth.sdk.client import AgentAuthClient
from agentauth.sdk.errors import AmbiguousGrantError, GrantPendingError, NoGrantError
from agentauth.sdk.grant_choice import waits_for_human
from agentauth.sdk.own_manifest import read_manifest
from agentauth.sdk.redacted_response import MAX_ANSWER_BYTES
from agentauth.sdk.registry_answers import Grant, ServiceProvider
from agentauth.sdk.url_checks import path_segment

from .access_outcomes import (
    ask_person,
    grant_row,
    grant_state,
    named_provider,
    no_grant,
    refused_before,
    report_response,
    service_of,
    shown_key,
    unknown_service,
)
from .argument_checks import check_call, read_capabilities
from .options import Options
from .outcomes import Outcome, Waiting, failure, mistake, shortened

_MAX_GRANTS: Final = 20
_ENDABLE: Final = ("approved", "suspended", "pending")


class Access:
    """One agent's access: request, status, call and revoke, one method for each tool."""

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
            return unknown_service(service)
        except (NoGrantError, CooldownActiveError) as error:
            return refused_before(service, error)
        except AgentAuthError as error:
            return failure(error)
        return grant_state(grant, provider.name)

    async def status(self, service: str | None, wait_seconds: int) -> Outcome:
        """The agent's grants, newest first.

        If some wait for a person, first waits up to `wait_seconds` for the newest of these.
        """
        try:
            provider = await self._provider(service) if service is not None else None
            grants = await self._grants(provider)
            undecided = next((grant for grant in grants if waits_for_human(grant)), None)
            if undecided is not None and wait_seconds > 0:
                newest = Waiting("grant", undecided.grant_id, url="", question="")
                await self.wait(newest, wait_seconds)
                grants = await self._grants(provider)
            agent = None
            if any(grant.status == "pending" for grant in grants):
                # Renews the claim link, which expires.
                agent = await self._client.register()
        except NotFoundError:
            return unknown_service(service or "")
        except AgentAuthError as error:
            return failure(error)
        code = agent.claim_code if agent else None
        claim = agent.claim_url if agent else None
        rows = [grant_row(grant, claim, code) for grant in grants[:_MAX_GRANTS]]
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
                return no_grant(NoGrantError("This agent has not asked for anything yet."), service)
            response = await self._client.call(
                service,
                method,
                path,
                action=act,
                json=body,
                idempotency_key=idempotency_key,
                max_bytes=MAX_ANSWER_BYTES,
            )
        except NotFoundError:
            return unknown_service(service)
        except GrantPendingError as error:
            question = f"This agent asks for access to {service}."
            return ask_person(
                Waiting("grant", error.grant_id, error.approval_url, question, error.claim_code),
                shown_key(idempotency_key),
            )
        except (NoGrantError, AmbiguousGrantError) as error:
            return no_grant(error, service)
        except AgentAuthError as error:
            return failure(error)
        return report_response(
            service, response, idempotency_key, registry_url=self._client.registry_url
        )

    async def revoke(self, service: str, grant_id: str | None) -> Outcome:
        """Give back every grant at `service`, or one; withdraws what is still pending."""
        ended: list[str] = []
        try:
            provider = await self._provider(service)
            for grant in await self._grants(provider):
                if grant.status not in _ENDABLE or grant_id not in {None, grant.grant_id}:
                    continue
                if grant.status == "pending":
                    await self._client.withdraw_grant(grant)
                else:
                    await self._client.revoke_grant(grant)
                ended.append(grant.grant_id)
        except NotFoundError:
            return unknown_service(service)
        except AgentAuthError as error:
            failed = failure(error)
            if not ended:
                return failed
            return replace(
                failed,
                text=f"Ended {_count(ended)} at {service}, then this failed: {failed.text}",
                body={**failed.body, "grant_ids": ended},
            )
        if not ended:
            return mistake(f"There is no access at {service} to give back.")
        return Outcome(
            f"Ended {_count(ended)} at {service}. Tokens of ended grants are refused.",
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

    async def report_decision(self, waited: Waiting) -> Outcome:
        """What became of the grant that was waited for. Never asks for another one."""
        try:
            grant = await self._client.get_grant(waited.id or "")
        except AgentAuthError as error:
            return failure(error)
        return grant_state(replace(grant, claim_code=waited.code), service_of(grant), waited)

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
        # `ensure_grant` also reuses a grant that covers more, and asks only for the rest.
        obtain = functools.partial(
            self._client.ensure_grant,
            service,
            asked,
            envelope=envelope if envelope != Envelope() else None,
            reason=reason,
            ask_again=ask_again,
        )
        try:
            return await obtain()
        except ManifestError:
            await self._client.renew_manifest(self._declared(asked))
        return await obtain()

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
        provider, allowed = named_provider(grant), self._options.services
        return not allowed or bool({provider.get("id"), provider.get("slug")} & set(allowed))


def _count(ended: Sequence[str]) -> str:
    return "one grant" if len(ended) == 1 else f"{len(ended)} grants"
