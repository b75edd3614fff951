"""The view of the key set of tokens (JWKS).

The keys of receipts and of the log are in the discovery document instead.
"""

from django.utils import timezone
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from kms.process_key_certificates import token_jwks

MAX_AGE_SECONDS = 30


class JwksView(APIView):
    """GET /.well-known/jwks.json (docs/protocol.md section 4)."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    def get(self, request: Request) -> Response:
        return Response(
            token_jwks(now=timezone.now()),
            headers={"Cache-Control": f"public, max-age={MAX_AGE_SECONDS}"},
        )
