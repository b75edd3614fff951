"""The log's key in tests. settings.AUDIT_SIGNER names it, because audit imports no key service."""

from datetime import datetime

from pytest_django.fixtures import Settings

from agentauth.protocol.keys import LocalSigner, PrivateKey, PublicKey
from agentauth.protocol.signed_notes import Verifier
from audit.checkpoints.log_breaks import origin

_SIGNER = LocalSigner(PrivateKey.generate())


def signer(*, purpose: str, now: datetime) -> LocalSigner:
    assert purpose == "audit"
    assert now.tzinfo is not None
    return _SIGNER


def verifier() -> Verifier:
    return Verifier(origin(), _SIGNER.public)


def keys(*, purpose: str, now: datetime) -> dict[str, PublicKey]:
    assert signer(purpose=purpose, now=now).kid == _SIGNER.kid
    return {_SIGNER.kid: _SIGNER.public}


def sign_with(settings: Settings, store: str = "") -> None:
    """Let the log sign with this key, and copy to this store."""
    settings.AUDIT_SIGNER = "audit.tests.signing.signer"
    settings.AUDIT_KEYS = "audit.tests.signing.keys"
    settings.AUDIT_STORE = store
