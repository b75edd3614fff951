"""The demo on the installed system: its service has a name and https; the user has a passkey."""

import contextlib
import json
import os
import re
import secrets
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from registry.management.commands.load_demo import ALLOWED
from tests.actors import LivePerson
from tests.certificates import self_signed
from tests.flows.test_sdk_demo import EXPECTED, Demo, after
from tests.postgres import free_port
from tests.production.connect_proxy import connect_proxy
from tests.production.registry import ProductionRegistry

pytestmark = pytest.mark.production


def test_the_demo_is_the_same_at_a_production_registry(
    production: ProductionRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, name = free_port(), f"demo-{secrets.token_hex(4)}.example.org"
    made = production.manage(
        "create_service_provider", name, "--audience", f"https://{name}", "--allow", *ALLOWED
    )
    certificate = self_signed(tmp_path, name)
    file = tmp_path / "demo.json"
    file.write_text(
        json.dumps(
            {
                **made,
                "audience": f"https://{name}",
                "registry_url": production.url,
                "listen": f"127.0.0.1:{port}",
                "certificate": str(certificate),
                "certificate_key": str(certificate.with_suffix(".key")),
            }
        )
    )
    trusted = tmp_path / "trusted.pem"
    trusted.write_text(production.certificate.read_text() + certificate.read_text())
    person = LivePerson(production, f"{secrets.token_hex(4)}@example.org")
    with contextlib.closing(person.http), connect_proxy(port) as proxy:
        env = {
            **os.environ,
            "DEMO_CREDENTIALS": str(file),
            "SSL_CERT_FILE": str(trusted),
            "HTTPS_PROXY": proxy,
        }
        lines = _told(person, env)
    shown = [line for line in lines if line.startswith(("✓ allowed", "✗ refused"))]
    assert [tuple(re.split(r"  +", line)[:4]) for line in shown] == EXPECTED, lines
    # Each of its events has its number, so the periodic jobs run.
    log = lines[lines.index("What the audit log says about it") :]
    assert any("registry.grant.revoked" in line for line in log)
    assert not any("…" in line for line in log)


def _told(person: LivePerson, env: dict[str, str]) -> list[str]:
    """The demo's output when the user agrees to everything."""
    demo, asked = Demo(env), {}

    def human(line: str) -> None:
        if url := after(line, "Approve here"):
            asked["approval"] = url
        if code := after(line, "Claim code"):
            person.claim(asked["approval"], code)
            [grant_id] = parse_qs(urlsplit(asked["approval"]).query)["grant"]
            asked["grant"] = grant_id
            assert person.decide(grant_id, person.sign(grant_id)).status_code == 200
        if url := after(line, "Confirm here"):
            assert person.confirm(urlsplit(url).path.split("/")[2]).status_code == 200
        if after(line, "Revoke here"):
            assert person.revoke_grant(asked["grant"]).is_redirect

    code = demo.run(human)
    assert code == 0, demo.lines
    return demo.lines
