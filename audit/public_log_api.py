"""The public proof endpoints, without authentication. They return neither salts nor events."""

from collections.abc import Iterable

from django.http import HttpResponse
from django.utils import timezone
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.permissions import AllowAny
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agentauth.protocol.encoding import b64_encode
from audit.checkpoints import proofs_and_tiles
from audit.query_parameters import query, read_id, read_number, read_required
from audit.tile_url_converters import TilePlace

TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"
# A tile of a given width never changes.
KEPT = "public, max-age=31536000, immutable"


class PublicView(APIView):
    """A view without authentication; the answer is the same for all clients."""

    authentication_classes = ()
    permission_classes = (AllowAny,)


class OneForm(DefaultContentNegotiation):
    """Ignore the Accept header: answers have one media type, and errors are JSON."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        renderer = next(iter(renderers))
        return renderer, str(renderer.media_type)


class CheckpointView(PublicView):
    """`GET /v1/audit/checkpoint`: the newest signed checkpoint with its cosignatures."""

    content_negotiation_class = OneForm

    def get(self, request: Request) -> HttpResponse:
        query(request)
        return HttpResponse(
            proofs_and_tiles.signed_checkpoint(now=timezone.now()), content_type=TEXT
        )


class InclusionView(PublicView):
    """`GET /v1/audit/proof/inclusion`: proof that an event is in the log."""

    def get(self, request: Request) -> Response:
        given = query(request, "event", "tree_size")
        found = proofs_and_tiles.prove_inclusion(
            event=read_id(read_required(given, "event")),
            tree_size=read_number(given["tree_size"], "tree_size")
            if "tree_size" in given
            else None,
            now=timezone.now(),
        )
        return Response(
            {
                "leaf_index": found.leaf_index,
                "tree_size": found.tree_size,
                "leaf_hash": b64_encode(found.leaf_hash),
                "audit_path": [b64_encode(each) for each in found.path],
                "root_hash": b64_encode(found.root),
            }
        )


class ConsistencyView(PublicView):
    """`GET /v1/audit/proof/consistency`: proof that the log only grew between two sizes."""

    def get(self, request: Request) -> Response:
        given = query(request, "first", "second")
        first, second = (
            read_number(read_required(given, name), name) for name in ("first", "second")
        )
        path = proofs_and_tiles.prove_consistency(first=first, second=second)
        return Response(
            {
                "first": first,
                "second": second,
                "consistency_path": [b64_encode(each) for each in path],
            }
        )


class BundleView(PublicView):
    """`GET /v1/audit/proof/bundle`: an event's proof and checkpoint as one text for offline use."""

    content_negotiation_class = OneForm

    def get(self, request: Request) -> HttpResponse:
        event = read_id(read_required(query(request, "event"), "event"))
        return HttpResponse(
            proofs_and_tiles.prove_event(event=event, now=timezone.now()), content_type=TEXT
        )


class TileView(PublicView):
    """`GET /v1/audit/tile/<L>/<N>[.p/<W>]`: hashes of the tree. The URLconf checks the form."""

    content_negotiation_class = OneForm

    def get(self, request: Request, level: int, tile: TilePlace) -> HttpResponse:
        query(request)
        return _cacheable_response(
            proofs_and_tiles.tile(
                level=level, number=tile.number, width=tile.width, now=timezone.now()
            )
        )


class EntriesView(PublicView):
    """`GET /v1/audit/tile/entries/<N>[.p/<W>]`: the entries that the leaves are hashes of."""

    content_negotiation_class = OneForm

    def get(self, request: Request, tile: TilePlace) -> HttpResponse:
        query(request)
        return _cacheable_response(
            proofs_and_tiles.entry_bundle(number=tile.number, width=tile.width, now=timezone.now())
        )


def _cacheable_response(content: bytes) -> HttpResponse:
    return HttpResponse(content, content_type=BYTES, headers={"Cache-Control": KEPT})
