"""The id of each request: in its answer, its log lines and events; of a traced one, its trace."""

import uuid

from agentauth.observability.logging_config import request_id, trace_id
from audit.new_ids import new_id_text

__all__ = ["begin_request", "new_request_id"]


def new_request_id() -> str:
    """A new id. In a trace it is the trace's id, written as a UUID."""
    traced = trace_id.get()
    return str(uuid.UUID(traced)) if traced else new_id_text()


def begin_request() -> str:
    """A new id, which every log line of this context carries from now on."""
    own = new_request_id()
    request_id.set(own)
    return own
