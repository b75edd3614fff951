"""`serve` says what is in its way before it says anything else."""

import socket
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from agentauth.management.commands import serve


def test_a_port_in_use_stops_it_before_any_link_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(serve, "call_command", lambda name, **_options: called.append(name))
    monkeypatch.setattr(serve, "supervise", lambda _commands: called.append("supervise"))
    out = StringIO()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(serve, "_port", lambda: port)
        with pytest.raises(CommandError, match=f"Port {port} .* in use"):
            call_command("serve", stdout=out)
    assert (called, out.getvalue()) == ([], "")
    call_command("serve", stdout=out)
    assert called == ["migrate", "ensure_keys", "setup_link", "supervise"]
