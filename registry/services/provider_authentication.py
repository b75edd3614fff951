"""Find service providers by client id and secret."""

import hashlib
import hmac
import uuid
from collections import defaultdict
from collections.abc import Sequence

from agentauth.protocol.errors import InvalidClientError
from agentauth.protocol.identifiers import parse_id
from kms.row_seals import select_sealed
from registry.models import ServiceProvider, ServiceProviderSecret

_UNKNOWN = "The client id or the secret is wrong."


def authenticate_service_provider(*, client_id: str, secret: str) -> ServiceProvider:
    """The active service provider with this id and secret.

    Raises the same InvalidClientError for an unknown id, a wrong secret and an inactive provider,
    so that callers cannot tell them apart. The digest is compared in constant time. A plain SHA-256
    is enough: a secret has 256 random bits, so it cannot be guessed from its digest.
    """
    [found] = find_by_credentials([(client_id, secret)])
    if found is None:
        raise InvalidClientError(_UNKNOWN)
    return found


def find_by_credentials(credentials: Sequence[tuple[str, str]]) -> list[ServiceProvider | None]:
    """`authenticate_service_provider` of several pairs in one query; None if it would raise."""
    ids: list[uuid.UUID | None] = []
    for client_id, _ in credentials:
        try:
            ids.append(parse_id(client_id))
        except ValueError:
            ids.append(None)
    rows = ServiceProviderSecret.objects.select_related("service_provider").filter(
        service_provider_id__in={each for each in ids if each is not None},
        revoked_at=None,
        service_provider__status=ServiceProvider.Status.ACTIVE,
    )
    held: dict[uuid.UUID | None, list[ServiceProviderSecret]] = defaultdict(list)
    for row in select_sealed(rows):
        held[row.service_provider_id].append(row)
    found: list[ServiceProvider | None] = []
    for client, (_, secret) in zip(ids, credentials, strict=True):
        digest = hashlib.sha256(secret.encode()).digest()
        good = [row for row in held[client] if hmac.compare_digest(bytes(row.digest), digest)]
        found.append(good[0].service_provider if good else None)
    return found
