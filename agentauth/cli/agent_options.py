"""Which agent the commands act as: a registry's address and where the agent's key is."""

from dataclasses import dataclass
from pathlib import Path

from agentauth.protocol.errors import InvalidRequestError
from agentauth.sdk.client import AgentAuthClient
from agentauth.sdk.key_store import KeyStore
from agentauth.sdk.key_store_choice import KeyStoreName, choose_key_store

from .result import UsageError


@dataclass(frozen=True, slots=True)
class Connection:
    """What the options --registry, --key-file and --key-store say."""

    registry: str
    key_file: Path | None = None
    key_store: KeyStoreName = "file"

    def stored(self) -> KeyStore:
        """The key store, which may have no key yet. Raises AddressError and UsageError."""
        try:
            return choose_key_store(self.key_store, self.registry, self.key_file)
        except InvalidRequestError as error:
            raise UsageError(error.description) from None
        except ImportError as error:
            raise UsageError(str(error)) from None

    def client(
        self, *, name: str | None = None, enrolment_code: str | None = None
    ) -> AgentAuthClient:
        """The agent's client. Raises AddressError and UsageError."""
        return AgentAuthClient(
            self.registry, keys=self.stored(), enrolment_code=enrolment_code, name=name
        )
