"""The log's verifier keys (vkeys), retired ones too, each under the name for which it signs."""

from django.utils import timezone

from agentauth.protocol.signed_notes import verifier_key
from audit.checkpoints.log_breaks import origin
from audit.models import LogBreak
from kms.models import Key
from kms.services import verification_keys


def audit_vkeys() -> list[str]:
    """The log's verifier keys (c2sp.org/signed-note), including all retired ones.

    The log's name is `<host>/v1/audit`. After a restore it has another name and other keys
    (docs/protocol.md section 9), and each name has only its own keys.
    """
    keys = verification_keys(purpose="audit", now=timezone.now())
    made = dict(Key.objects.filter(kid__in=keys).values_list("kid", "published_at"))
    begun = [(row.at, row.name) for row in LogBreak.objects.order_by("-name")]
    # Checkpoints are signed with Ed25519 alone.
    return [
        verifier_key(origin(next((name for at, name in begun if at <= made[kid]), "")), key)
        for kid, key in keys.items()
        if key.kty == "OKP"
    ]
