"""The arguments of services that change what verification reads."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings

from agentauth.protocol.agent_manifest import VerifiedManifest, sign_manifest, verify_manifest
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.key_change import VerifiedKeyChange, sign_key_change, verify_key_change
from agentauth.protocol.keys import LocalSigner, PrivateKey
from registry.models import Agent, Grant
from registry.services import enrolment_codes, grants, tokens
from registry.tests.cast import AgentClient, enrolled, pending
from verifier.tests.scene import READ, SYSTEM, Scene


@dataclass
class World:
    """An approved grant with a token, and the arguments of one service made from it."""

    place: Scene
    now: datetime
    jti: str = ""

    def __post_init__(self) -> None:
        grant_id = str(self.place.grant.pk)
        self.jti = tokens.issue_token(
            agent=self.place.agent, grant_id=grant_id, actor=SYSTEM, now=self.now
        ).jti

    def grant(self) -> Grant:
        return Grant.objects.select_related("agent__human", "service_provider").get(
            pk=self.place.grant.pk
        )

    def suspended(self, cause: str) -> Grant:
        grants.suspend_grant(grant=self.grant(), cause=cause, actor=SYSTEM, now=self.now)
        return self.grant()

    def renewable(self) -> Grant:
        """In force, and asked for a longer life than it has left."""
        end = self.now + timedelta(minutes=5)
        Grant.objects.filter(pk=self.place.grant.pk).update(valid_until=end)
        return self.grant()

    def over(self) -> Grant:
        Grant.objects.update(valid_until=self.now)
        return self.grant()

    def request(self) -> Grant:
        """A request of another agent of the same human."""
        return pending(enrolled(self.place.human, now=self.now), self.place.provider, now=self.now)

    def request_that_is_over(self) -> Grant:
        asked_for = self.request()
        Grant.objects.filter(pk=asked_for.pk).update(expires_at=self.now)
        asked_for.refresh_from_db()
        return asked_for

    def unclaimed(self) -> Agent:
        client = AgentClient()
        client.register()
        return client.agent()

    def manifest(self) -> VerifiedManifest:
        seconds = int(self.now.timestamp())
        return verify_manifest(
            AgentClient().manifest(), expected_audience=settings.ISSUER, now=seconds
        )

    def key_change(self) -> VerifiedKeyChange:
        agent = self.place.agent
        seconds = int(self.now.timestamp())
        key = LocalSigner(PrivateKey.generate())
        who: dict[str, str] = {"agent_id": str(agent.pk), "old_jkt": agent.jkt}
        compact = sign_key_change(
            key, audience=settings.ISSUER, issued_at=seconds, jti="j" * 22, **who
        )
        expected = {f"expected_{name}": value for name, value in who.items()}
        return verify_key_change(
            compact, expected_audience=settings.ISSUER, now=seconds, **expected
        )

    def later_manifest(self) -> VerifiedManifest:
        return later_manifest(self.place, self.now)

    def wrong_code(self) -> str:
        code = enrolment_codes.create_enrolment_code(
            human=self.place.human, actor=SYSTEM, now=self.now
        )[1]
        return code[:-1] + ("A" if code[-1] != "A" else "B")

    def token(self) -> str:
        return tokens.sign_issued(tokens.issued_again(self.jti, self.now).claims, self.now)


def later_manifest(place: Scene, now: datetime) -> VerifiedManifest:
    """A manifest signed by the agent's own key, with another description."""
    seconds = int(now.timestamp())
    compact = sign_manifest(
        place.signer,
        audience=settings.ISSUER,
        issued_at=seconds + 1,
        expires_at=seconds + 86_400,
        jti="j" * 22,
        name="Research Assistant",
        description="Another",
        model_origin="models.example",
        capabilities=parse_capabilities([READ]),
    )
    return verify_manifest(compact, expected_audience=settings.ISSUER, now=seconds)
