import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth.cli import main
from agentauth.cli.capability_arguments import read_action, read_capability
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.money import Money
from agentauth.protocol.tests.test_approval_receipt import ISSUER, SIGNER, receipt
from agentauth.protocol.tests.test_passkey_statements import ALL, CONSENT
from agentauth.sdk.tests.fake_registry import AUDIENCE, GRANT_ID, SP_ID, URL, FakeRegistry, grant


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("text", "capability"),
    [
        ("read:calendar/work", Capability.read("calendar/work")),
        ("write:files", Capability.write("files")),
        ("delete:files/scratch", Capability.delete("files/scratch")),
        (
            "transact:payments:100.00:EUR",
            Capability.transact("payments", max_amount=("100.00", "EUR")),
        ),
        ("custom:acme.crm.merge:contacts", Capability.custom("acme.crm", "merge", "contacts")),
        (
            '{"type":"read","resource":"calendar","constraints":{"visibility":{"in":["busy"]}}}',
            Capability.read("calendar", constraints={"visibility": {"in": ["busy"]}}),
        ),
    ],
)
def test_a_capability_is_written_short_or_as_json(text: str, capability: Capability) -> None:
    assert read_capability(text) == capability


@pytest.mark.parametrize(
    "text",
    [
        "",
        "calendar",
        "read:",
        "read:a:b",
        "steal:calendar",
        "transact:payments",
        "read:../x",
        "{",
        "{}",
    ],
)
def test_malformed_capability_argument_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        read_capability(text)


def test_keygen_makes_a_key_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "agent.json"
    code, made = answer(capsys, "keygen", "--registry", URL, "--key-file", str(file))
    assert code == 0
    assert made["key_file"] == str(file)
    assert len(made["jkt"]) == 43
    before = file.read_bytes()
    code, refused = answer(capsys, "keygen", "--registry", URL, "--key-file", str(file))
    assert (code, refused["error"]) == (1, "key_file")
    assert file.read_bytes() == before


def test_register_request_token_and_call(
    agent: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.agent_status = "unclaimed"
    assert (
        answer(capsys, "register", "-c", "read:calendar", "--name", "Robot")[1]["claim_code"]
        == "ABCD2345"
    )
    code, asked = answer(capsys, "request", SP_ID, "-c", "read:calendar", "--reason", "To plan.")
    assert (code, asked["status"], asked["claim_code"]) == (0, "pending", "ABCD2345")
    assert agent.bodies("POST", "/v1/grants")[0]["reason"] == "To plan."
    code, pending = answer(capsys, "token", SP_ID)
    assert (code, pending["error"]) == (3, "grant_pending")
    assert pending["approval_url"].startswith(URL)
    agent.grants = [grant()]
    assert answer(capsys, "token", SP_ID) == (0, {"access_token": "token-1"})
    code, called = answer(
        capsys, "call", SP_ID, "post", "/v1/events", "--data", '{"a":1}', "--idempotency-key", "k"
    )
    assert (code, called) == (0, {"status": 200, "body": {"ok": True}, "ok": True})
    request = agent.requests[-1]
    assert (request.method, str(request.url)) == ("POST", f"{AUDIENCE}/events")
    assert request.headers["Idempotency-Key"] == "k"
    assert json.loads(request.content) == {"a": 1}
    code, refused = answer(capsys, "call", SP_ID, "GET", "/v1/events", "--max-bytes", "5")
    assert (code, refused["error"]) == (4, "temporarily_unavailable")


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("read:calendar/work", Action("read", "calendar/work")),
        ("transact:payments:20.00:EUR", Action("transact", "payments", Money.of("20.00", "EUR"))),
        (
            "custom:acme.crm.merge:contacts",
            Action("custom", "contacts", namespace="acme.crm", name="merge"),
        ),
        (
            '{"type": "read", "resource": "calendar", "arguments": {"day": 1}}',
            Action("read", "calendar", arguments={"day": 1}),
        ),
    ],
)
def test_an_action_is_written_like_a_capability(text: str, action: Action) -> None:
    assert read_action(text) == action


def test_the_action_chooses_the_grant(
    agent: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(capsys, "register", "-c", "read:calendar")
    files = {"capabilities": [{"type": "write", "resource": "files"}], "envelope": {}}
    other = GRANT_ID[:-1] + "9"
    agent.grants = [grant(), grant(grant_id=other, granted=files)]
    assert answer(capsys, "token", SP_ID)[1]["error"] == "ambiguous_grant"
    answer(capsys, "token", SP_ID, "--action", "write:files/report")
    answer(capsys, "call", SP_ID, "GET", "/v1/events", "--action", "read:calendar")
    assert agent.bodies("POST", "/v1/tokens") == [{"grant_id": other}, {"grant_id": GRANT_ID}]


def decides(status: str, **members: Any) -> Any:
    """A script in which the person decides after the link was shown."""
    told: list[str] = []

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != f"/v1/grants/{GRANT_ID}":
            return None
        told.append("pending" if not told else status)
        return httpx.Response(200, json=grant(status=told[-1], **(members if told[1:] else {})))

    return script


def test_request_can_wait(
    agent: FakeRegistry, capsys: pytest.CaptureFixture[str], slept: list[float]
) -> None:
    agent.script = decides("approved")
    assert main(["request", SP_ID, "-c", "read:calendar", "--wait", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["status"] == "approved"
    assert f"{URL}/approvals/{GRANT_ID}/" in printed.err


def test_a_refused_call_exits_with_1(
    agent: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(capsys, "register", "-c", "read:calendar")
    agent.grants = [grant()]
    agent.script = lambda r: (
        httpx.Response(403, json={"error": "insufficient_scope"})
        if r.url.host == "api.sp.example"
        else None
    )
    code, called = answer(capsys, "call", SP_ID, "GET", "/v1/files")
    assert (code, called["status"], called["body"]) == (1, 403, {"error": "insufficient_scope"})


def test_people_get_lines_and_errors_go_to_stderr(
    agent: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["register", "-c", "read:calendar"]) == 0
    assert "agent id    01900000-" in capsys.readouterr().out
    assert main(["token", SP_ID]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")


@pytest.mark.parametrize("arguments", [[], ["steal"], ["token"], ["verify-receipt", "x"]])
def test_wrong_use_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2


# ---- receipts


def files(tmp_path: Path, compact: str, **key: str) -> tuple[str, str]:
    keys = {"keys": [SIGNER.public.jwk | {"kid": SIGNER.kid} | key]}
    (tmp_path / "receipt").write_text(compact)
    (tmp_path / "keys").write_text(json.dumps(keys))
    return str(tmp_path / "receipt"), str(tmp_path / "keys")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_receipt_is_checked_without_a_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, wrapped: bool
) -> None:
    compact = receipt(ALL["approve"] if "approve" in ALL else next(iter(ALL.values())))
    file, keys = files(tmp_path, json.dumps({"receipt": compact}) if wrapped else compact + "\n")
    code, checked = answer(capsys, "verify-receipt", file, "--trusted-keys", keys)
    assert (code, checked["ok"], checked["issuer"], checked["consent_text"]) == (
        0,
        True,
        ISSUER,
        CONSENT,
    )
    assert main(["verify-receipt", file, "--trusted-keys", keys, "--issuer", ISSUER]) == 0


def test_a_receipt_that_was_touched_or_is_not_trusted_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compact = receipt(next(iter(ALL.values())))
    head, payload, signature = compact.split(".")
    touched = ".".join((head, payload, ("A" if signature[0] != "A" else "B") + signature[1:]))
    for text, arguments in (
        (touched, []),
        ("nonsense", []),
        (compact, ["--issuer", "https://other.example"]),
    ):
        file, keys = files(tmp_path, text)
        code, refused = answer(capsys, "verify-receipt", file, "--trusted-keys", keys, *arguments)
        assert (code, refused["error"]) == (1, "invalid_receipt")
    file, keys = files(tmp_path, compact, kid="another")
    assert answer(capsys, "verify-receipt", file, "--trusted-keys", keys)[0] == 1


@pytest.mark.parametrize("keys", ["", "{}", '{"keys":[]}', '{"keys":[{}]}', '{"keys":[1]}'])
def test_keys_that_anchor_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: str
) -> None:
    file, name = files(tmp_path, receipt(next(iter(ALL.values()))))
    Path(name).write_text(keys)
    assert answer(capsys, "verify-receipt", file, "--trusted-keys", name)[0] == 1
    assert answer(capsys, "verify-receipt", file, "--trusted-keys", str(tmp_path / "none"))[0] == 1


def test_two_keys_of_one_name_anchor_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, name = files(tmp_path, receipt(next(iter(ALL.values()))))
    keys = json.loads(Path(name).read_text())["keys"]
    Path(name).write_text(json.dumps({"keys": keys * 2}))
    assert (
        answer(capsys, "verify-receipt", file, "--trusted-keys", name)[1]["error"]
        == "invalid_request"
    )
