"""Which store is the verifier's home's."""

from agentauth.protocol.errors import TemporarilyUnavailableError
from verifier.models import Home
from verifier.services.home import Tenure
from verifier.stores import VerifierStore
from verifier.stores.database import DatabaseStore

_DATABASE: VerifierStore = DatabaseStore()


def store(tenure: Tenure) -> VerifierStore:
    """The store that decides under `tenure`. Raises TemporarilyUnavailableError for a home that this process cannot use."""
    if tenure.kind == Home.Kind.DATABASE:
        return _DATABASE
    raise TemporarilyUnavailableError("The verifier is at home where this process cannot reach it.")
