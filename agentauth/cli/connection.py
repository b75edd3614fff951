"""Which agent the commands act as: a registry's address and a key file."""

from dataclasses import dataclass
from pathlib import Path

from agentauth.sdk.addresses import check_registry_url
from agentauth.sdk.client import AgentAuthClient
from agentauth.sdk.key_file import KeyFile, default_path


@dataclass(frozen=True, slots=True)
class Connection:
    """What the options --registry and --key-file say."""

    registry: str
    key_file: Path | None = None

    def stored(self) -> KeyFile:
        """The key file, which may not exist yet. Raises AddressError."""
        return KeyFile(self.key_file or default_path(check_registry_url(self.registry)))

    def client(
        self, *, name: str | None = None, enrolment_code: str | None = None
    ) -> AgentAuthClient:
        """The agent's client. Raises AddressError."""
        return AgentAuthClient(
            self.registry, key_file=self.key_file, enrolment_code=enrolment_code, name=name
        )
