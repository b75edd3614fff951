"""The public documents: everything they name exists, and every valid key is in them."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client

from kms.services import disable_key, ensure_key, promote_due_keys, rotate_key
from registry.tests.cast import TESTER

pytestmark = pytest.mark.django_db


def test_discovery_is_public_and_true() -> None:
    document = Client().get("/.well-known/agentauth").json()
    assert (document["version"], document["issuer"]) == (1, "http://localhost:8000")
    assert document["capability_types"] == ["read", "write", "delete", "transact", "custom"]
    assert "max_uses" in document["envelope"]["maxima"]
    assert document["algorithms"] == ["EdDSA", "Ed25519", "ES256"]
    for url in document["endpoints"].values():
        # Each address is one of ours: it requires credentials, so it exists.
        path = url.removeprefix("http://localhost:8000")
        found = [
            Client().generic(method, path + more).status_code
            for method in ("GET", "POST")
            for more in ("", "/x", "/0/000")
        ]
        assert set(found) - {404}, path
    server = Client().get("/.well-known/oauth-authorization-server").json()
    assert server["introspection_endpoint"] == document["endpoints"]["introspect"]
    assert server["introspection_endpoint_auth_methods_supported"] == ["client_secret_basic"]
    assert (server["response_types_supported"], server["grant_types_supported"]) == ([], [])
    assert "token_endpoint" not in server


def vkeys() -> list[str]:
    document: dict[str, Any] = Client().get("/.well-known/agentauth").json()
    return list(document["audit_vkeys"])


def test_the_log_s_verifier_keys_are_published_and_kept_when_retired(now: datetime) -> None:
    assert vkeys() == []
    first = ensure_key(purpose="audit", actor=TESTER, now=now - timedelta(days=400))
    (line,) = vkeys()
    name, key_hash, _ = line.split("+", 2)
    assert name == "localhost:8000/v1/audit"
    assert len(key_hash) == 8
    rotate_key(purpose="audit", actor=TESTER, now=now - timedelta(days=300))
    promote_due_keys(now=now)
    assert len(vkeys()) == 2
    assert line in vkeys()
    # A key that may have leaked vouches for nothing, not even the past.
    disable_key(kid=first.kid, actor=TESTER, now=now)
    assert len(vkeys()) == 1
    assert line not in vkeys()
