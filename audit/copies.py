"""How the copies of checkpoints are named in a store outside, and the error of a log that does not fit what it signed."""

from django.conf import settings

from agentauth.protocol.errors import ChainError

PREFIX = "checkpoints/"


class ContradictedError(ChainError):
    """The log is not what it signed before. Nothing is signed until a person has looked."""

    code = "log_contradicted"


def key_of(size: int) -> str:
    """Where the checkpoint of `size` leaves stands in a store: keys sort as sizes do."""
    return f"{PREFIX}{size:020d}"


def store_name() -> str:
    """The store without its options, as rows name it."""
    return settings.AUDIT_STORE.partition("?")[0][:255]
