"""A user's `sub` at a service provider never changes, whichever key rotates or process issues
first.
"""

import hashlib
import hmac
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction

from agentauth.protocol.encoding import b64u_decode, b64u_encode
from agentauth.protocol.errors import InvalidStateError, TemporarilyUnavailableError
from registry.models import Grant, Human, Installation, PairwiseSubject, ServiceProvider, Token
from registry.services.agent_claims import check_claim_code, find_claim
from registry.services.code_derivation import is_one_of
from registry.services.nonces import REGISTRY, _nonces, nonces_of
from registry.services.pairwise_subjects import pairwise_subject
from registry.services.service_providers import create_service_provider
from registry.services.settings_agreement import record_settings
from registry.tests.cast import TESTER, AgentClient, approved, claim_link, issue

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("token_key")]
NEW = "n3w-0123456789-abcdefghijklmnopqrstuvwxyz-ABCDEFGHIJ"
FIRST, SECOND = b"1" * 32, b"2" * 32


def sub(agent: AgentClient, grant: Grant) -> str:
    assert issue(agent, grant).status_code == 201
    return str(Token.objects.latest("id").claims["sub"])


def legacy(secret_key: str, grant: Grant) -> str:
    """The value from before there was a subject key."""
    message = (
        f"agentauth/subject/v1\x00{grant.service_provider_id}\x00{grant.agent.human_id}".encode()
    )
    return b64u_encode(hmac.new(secret_key.encode(), message, hashlib.sha256).digest())


@pytest.fixture
def grant(agent: AgentClient, service_provider: ServiceProvider, now: datetime) -> Grant:
    return approved(agent, service_provider, now=now)


@pytest.fixture
def other_grant(agent: AgentClient, now: datetime) -> Grant:
    """The same user at another service provider: a new pair."""
    provider, _ = create_service_provider(
        name="Other",
        audience="http://127.0.0.1:8004",
        allowed=["read:calendar"],
        actor=TESTER,
        now=now,
    )
    return approved(agent, provider, now=now)


def test_without_a_subject_key_the_sub_is_what_it_always_was(
    agent: AgentClient, grant: Grant, settings: Any
) -> None:
    """Processes of the previous version, which know no table, compute the same value."""
    assert sub(agent, grant) == legacy(settings.SECRET_KEY, grant)
    assert PairwiseSubject.objects.get().key_version == "legacy"


def test_a_new_subject_key_is_for_new_pairs_only(
    agent: AgentClient, grant: Grant, other_grant: Grant, settings: Any
) -> None:
    settings.SUBJECT_KEYS = {"1": FIRST}
    began = sub(agent, grant)
    settings.SUBJECT_KEYS = {"2": SECOND, "1": FIRST}
    assert sub(agent, grant) == began
    new, human = sub(agent, other_grant), other_grant.agent.human_id
    assert human is not None
    assert new == pairwise_subject(human, other_grant.service_provider_id, version="2")
    settings.SUBJECT_KEYS = {"1": FIRST, "2": SECOND}
    assert (sub(agent, grant), sub(agent, other_grant)) == (began, new)


def test_DJ_29_another_secret_key_changes_no_sub(
    agent: AgentClient, grant: Grant, settings: Any, tmp_path: Path
) -> None:
    """As operators do: the current key becomes version `legacy` of a file, then SECRET_KEY is
    rotated.
    """
    began = sub(agent, grant)
    call_command("make_subject_key", str(tmp_path / "key"), "--keep")
    lines = dict(line.split(":") for line in (tmp_path / "key").read_text().split())
    assert list(lines) == ["legacy", "1"]
    settings.SUBJECT_KEYS = {name: b64u_decode(key) for name, key in lines.items()}
    # Seals under the old key count while it is a fallback.
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = NEW, [settings.SECRET_KEY]
    assert sub(agent, grant) == began


def test_of_two_processes_with_other_present_keys_one_writes_the_pair(
    agent: AgentClient, grant: Grant, settings: Any
) -> None:
    human, provider = grant.agent.human_id, grant.service_provider_id
    assert human is not None
    settings.SUBJECT_KEYS = {"1": FIRST, "2": SECOND}
    first = pairwise_subject(human, provider, version=None)
    # It read that there was no row before the other process wrote it.
    settings.SUBJECT_KEYS = {"2": SECOND, "1": FIRST}
    assert pairwise_subject(human, provider, version=None) == first == sub(agent, grant)
    with pytest.raises(IntegrityError), transaction.atomic():
        PairwiseSubject.objects.create(
            human_id=human, service_provider_id=provider, key_version="2"
        )


def test_a_process_that_lacks_a_pairs_version_issues_nothing(
    agent: AgentClient, grant: Grant, settings: Any
) -> None:
    settings.SUBJECT_KEYS = {"1": FIRST}
    sub(agent, grant)
    settings.SUBJECT_KEYS = {"2": SECOND}
    assert issue(agent, grant).status_code == 503
    with pytest.raises(TemporarilyUnavailableError):
        pairwise_subject(grant.agent.human_id, grant.service_provider_id, version="1")  # type: ignore[arg-type]


def record(now: datetime, *change: str) -> None:
    record_settings(change=change, actor=TESTER, now=now)


def test_when_a_new_version_is_recorded_all_earlier_pairs_are_pinned(
    agent: AgentClient, grant: Grant, other_grant: Grant, settings: Any, now: datetime
) -> None:
    """A token issued by a process of the previous version left no row."""
    began = sub(agent, grant)
    PairwiseSubject.objects.all().delete()
    record(now)
    held = dict(settings.SUBJECT_KEYS)
    settings.SUBJECT_KEYS = held | {"1": FIRST}
    record(now, "SUBJECT_KEY")
    settings.SUBJECT_KEYS = {"1": FIRST} | held
    assert sub(agent, grant) == began
    assert set(PairwiseSubject.objects.values_list("key_version", flat=True)) == {"legacy"}
    assert sub(agent, other_grant) == legacy(settings.SECRET_KEY, other_grant)


def test_a_version_in_use_is_neither_dropped_nor_replaced(
    agent: AgentClient, grant: Grant, settings: Any, now: datetime
) -> None:
    record(now)
    held = dict(settings.SUBJECT_KEYS)
    settings.SUBJECT_KEYS = {"1": FIRST, "2": SECOND} | held
    record(now, "SUBJECT_KEY")
    sub(agent, grant)
    # Pinned before its first token: it keeps the previous version's value.
    assert PairwiseSubject.objects.get().key_version == "legacy"
    for wrong in ({"1": FIRST}, {"1": FIRST, "legacy": SECOND}):
        settings.SUBJECT_KEYS = wrong
        with pytest.raises(InvalidStateError, match="'legacy'"):
            record(now, "SUBJECT_KEY")
    settings.SUBJECT_KEYS = {"1": FIRST} | held
    record(now, "SUBJECT_KEY")
    assert len(Installation.objects.get().fingerprint["SUBJECT_KEY"]) == 2


def test_an_upgraded_installation_records_the_key_its_tokens_came_from(
    agent: AgentClient, grant: Grant, settings: Any, now: datetime
) -> None:
    sub(agent, grant)
    held = dict(settings.SUBJECT_KEYS)
    for wrong in ({"1": FIRST}, {"1": FIRST} | held, {"legacy": SECOND}):
        settings.SUBJECT_KEYS = wrong
        with pytest.raises(InvalidStateError):
            record(now)
    assert not Installation.objects.exists()
    settings.SUBJECT_KEYS = held | {"1": FIRST}
    record(now)


def test_a_new_installation_in_production_needs_a_subject_key(settings: Any, now: datetime) -> None:
    settings.DEVELOPMENT = False
    with pytest.raises(InvalidStateError, match="make_subject_key"):
        record(now)
    settings.SUBJECT_KEYS = {"1": FIRST}
    record(now)


def test_the_file_of_a_new_key_is_private_and_never_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key"
    call_command("make_subject_key", str(path), "--json")
    assert json.loads(capsys.readouterr().out) == {"file": str(path), "versions": ["1"]}
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    with pytest.raises(CommandError, match="File exists"):
        call_command("make_subject_key", str(path))
    assert path.read_text() == text


# ---- what was given out before SECRET_KEY was rotated


def test_DJ_29_claim_links_and_codes_outlive_a_rotation_of_the_secret_key(
    settings: Any, now: datetime
) -> None:
    stray = AgentClient()
    stray.register()
    url, code = claim_link(stray.agent())
    secret = url.rstrip("/").rsplit("/", 1)[1]
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = NEW
    new_url, new_code = claim_link(stray.agent())
    assert (new_url != url, new_code != code) == (True, True)
    for shown in (secret, new_url.rstrip("/").rsplit("/", 1)[1]):
        assert find_claim(shown, now=now) == stray.agent()
    for typed in (code, new_code):
        check_claim_code(agent=stray.agent(), code=typed, actor=TESTER, now=now)
    settings.SECRET_KEY_FALLBACKS = []
    from agentauth.protocol.errors import NotFoundError

    with pytest.raises(NotFoundError):
        find_claim(secret, now=now)
    assert is_one_of(b"a", [b"b", b"a"])
    assert not is_one_of(b"a", [])


def test_DJ_29_nonces_outlive_a_rotation_of_the_secret_key(settings: Any, now: datetime) -> None:
    before = nonces_of(REGISTRY, now)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = NEW
    _nonces.cache_clear()
    after = nonces_of(REGISTRY, now)
    assert set(before.accepted) < set(after.accepted)
    assert after.current not in before.accepted
    # A caller with an old nonce gets the new one with the answer.
    assert after.fresh_for(before.current) == after.current
    assert after.fresh_for(after.current) is None
    _nonces.cache_clear()


def test_DJ_29_sessions_outlive_a_rotation_of_the_secret_key(alice: Human, settings: Any) -> None:
    before = alice.get_session_auth_hash()
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = NEW
    assert alice.get_session_auth_fallback_hash() == [before]
    assert alice.get_session_auth_hash() != before
