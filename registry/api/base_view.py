"""What all native views share: one reading of the clock, the actor, idempotency, paging."""

import hashlib
import uuid
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.http import HttpResponse
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.identifiers import parse_id
from agentauth.protocol.json_fields import members
from audit import query_parameters
from audit.services import Actor
from registry.authentication import AgentProofAuthentication, actor_of, caller_of
from registry.models import Agent
from registry.permissions import IsAgent
from registry.services.idempotency import IdempotentAnswer, run_once

DEFAULT_PAGE = 50
MAX_PAGE = 100


class NativeView(APIView):
    """An endpoint of the native API: agents only, unless a subclass says otherwise."""

    authentication_classes = [AgentProofAuthentication]
    permission_classes = [IsAgent]
    now: datetime

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.now = timezone.now()
        super().initial(request, *args, **kwargs)
        # Here the size is bounded; a DRF parser would read the raw stream to its end.
        self.read_body(request)

    def read_body(self, request: Request) -> None:
        """Read the body into memory, up to Django's limit. Raises RequestDataTooBig."""
        _ = request.body

    @property
    def agent(self) -> Agent:
        """The calling agent. Permissions admit no other caller."""
        caller = caller_of(self.request)
        if not isinstance(caller, Agent):
            raise TypeError("this view is for agents")
        return caller

    @property
    def actor(self) -> Actor:
        return actor_of(self.request)

    def body(
        self, *, required: Collection[str] = (), optional: Collection[str] = ()
    ) -> dict[str, Any]:
        """The body's JSON object, with exactly these members. No body counts as an empty object."""
        data = self.request.data if self.request.body else {}
        return members(data, "body", required=required, optional=optional)

    def answer(self, data: dict[str, Any], *, status: int = 200) -> HttpResponse:
        """Renders as DRF's Response would, without its slower way through a template response."""
        request: Any = self.request
        content = request.accepted_renderer.render(data, request.accepted_media_type, {})
        return HttpResponse(
            content, status=status, content_type=request.accepted_renderer.media_type
        )

    def query(self, *names: str) -> dict[str, str]:
        """The query parameters: each at most once, and only these names."""
        return query_parameters.query(self.request, *names)

    def refuse_query(self) -> None:
        """Raise InvalidRequestError if there is any query parameter."""
        self.query()

    def list_page(
        self, newest_first: QuerySet[Any], render: Callable[[Any], dict[str, Any]]
    ) -> Response:
        """One page of rows, by `-id`. `?after=`: the last page's cursor; `?limit=`: 1 to 100."""
        query = self.query("after", "limit")
        limit = query_integer(
            query.get("limit", str(DEFAULT_PAGE)), "limit", minimum=1, maximum=MAX_PAGE
        )
        if "after" in query:
            newest_first = newest_first.filter(id__lt=query_cursor(query["after"]))
        page = list(newest_first[: limit + 1])
        more = len(page) > limit
        results = [render(row) for row in page[:limit]]
        return Response({"results": results, "next": str(page[limit - 1].pk) if more else None})

    def once(self, act: Callable[[], IdempotentAnswer], *, caller: str = "") -> IdempotentAnswer:
        """Run the act under the request's Idempotency-Key, if any, and in one transaction."""
        return run_once(
            caller=caller or str(self.agent.pk),
            route=f"{self.request.method} {self.request.path}",
            key=self.request.META.get("HTTP_IDEMPOTENCY_KEY"),
            body_sha256=hashlib.sha256(self.request.body).digest(),
            now=self.now,
            act=act,
        )


def query_integer(text: str, name: str, *, minimum: int, maximum: int) -> int:
    """A plain decimal integer in range. Raises InvalidRequestError."""
    if (
        not text.isascii()
        or not text.isdigit()
        or not minimum <= int(text[:9]) <= maximum
        or len(text) > len(str(maximum))
    ):
        raise InvalidRequestError(f"{name} must be an integer from {minimum} to {maximum}.")
    return int(text)


def query_cursor(text: str) -> uuid.UUID:
    """A cursor as `next` returned it. Raises InvalidRequestError."""
    try:
        return parse_id(text)
    except ValueError:
        raise InvalidRequestError("The cursor is not one that this API returned.") from None


def empty(status: int = 204) -> Response:
    """An answer without a body."""
    return Response(status=status)
