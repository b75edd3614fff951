"""The life of a key: made, published, switched to, retired, disabled; each step is one event."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.db import IntegrityError, transaction

from agentauth.protocol.errors import (
    InvalidStateError,
    InvalidTokenError,
    NotFoundError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.keys import LocalSigner, PrivateKey, parse_jwk
from agentauth.protocol.token import build_claims, sign_token, verify_access_token
from audit.models import Event
from audit.services import Actor
from kms import backends, services
from kms.lifetimes import PUBLISHED_BEFORE_USE, TOKEN_OVERLAP
from kms.models import Key
from kms.services import (
    disable_key,
    disabled_keys,
    ensure_key,
    promote_due_keys,
    public_jwks,
    rotate_key,
    signer,
    verification_keys,
)

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 11, 25, 9, 30, tzinfo=UTC)
SWITCH = NOW + PUBLISHED_BEFORE_USE
TICK = timedelta(microseconds=1)
ACTOR = Actor("system", "test")


def _rotate(now: datetime = NOW, purpose: str = "token") -> Key:
    return rotate_key(purpose=purpose, actor=ACTOR, now=now)


def _kid(now: datetime, purpose: str = "token") -> str:
    return signer(purpose=purpose, now=now).kid


def _verifying(now: datetime, purpose: str = "token") -> set[str]:
    return set(verification_keys(purpose=purpose, now=now))


def _events() -> list[tuple[str, str]]:
    """Kind and key of every event, in no particular order."""
    return [(event.kind, event.data["kid"]) for event in Event.objects.all()]


def test_a_purpose_s_very_first_key_signs_at_once() -> None:
    key = _rotate()
    assert (key.state, key.active_from, key.kid) == ("active", NOW, _kid(NOW))
    assert _events() == [("kms.key.activated", key.kid)]


def test_without_a_key_nothing_is_signed_and_the_reason_is_hidden() -> None:
    with pytest.raises(TemporarilyUnavailableError) as refused:
        signer(purpose="token", now=NOW)
    assert "key" not in refused.value.description


def test_the_next_key_is_published_before_it_signs() -> None:
    old, new = _rotate(), _rotate()
    assert new.active_from - new.published_at >= timedelta(seconds=120)
    assert _verifying(NOW) == {old.kid, new.kid}
    assert (_kid(SWITCH - TICK), _kid(SWITCH)) == (old.kid, new.kid)
    assert sorted(_events()) == [("kms.key.activated", old.kid), ("kms.key.published", new.kid)]


def test_the_switch_needs_no_job_and_the_job_records_it_once() -> None:
    old, new = _rotate(), _rotate()
    assert promote_due_keys(now=SWITCH - TICK) == 0
    assert [promote_due_keys(now=SWITCH + timedelta(hours=1)) for _ in range(2)] == [1, 0]
    old.refresh_from_db()
    new.refresh_from_db()
    assert (old.state, old.retired_at, old.needed_until) == (
        "retired",
        SWITCH,
        SWITCH + TOKEN_OVERLAP,
    )
    assert new.state == "active"
    event = Event.objects.get(kind="kms.key.activated", data__replaced=old.kid)
    assert event.data == {
        "kid": new.kid,
        "purpose": "token",
        "algorithm": "EdDSA",
        "replaced": old.kid,
    }


def test_the_job_overtaken_by_another_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = _rotate(), _rotate()
    promote_due_keys(now=SWITCH)
    before = Event.objects.count()
    new.state = Key.State.NEXT  # As read by a process before the other committed.
    assert not services._promote(new, actor=ACTOR, now=SWITCH)
    new.refresh_from_db()
    old.refresh_from_db()
    assert (old.state, new.state, Event.objects.count()) == ("retired", "active", before)


def test_a_second_rotation_waits_for_the_first_to_take_effect() -> None:
    _rotate()
    new = _rotate()
    with pytest.raises(InvalidStateError, match=new.kid):
        _rotate(SWITCH - TICK)
    newest = _rotate(SWITCH)
    assert newest.state == "next"
    assert Key.objects.get(pk=new.pk).state == "active"


def test_rotations_at_the_same_time_make_one_next_key(monkeypatch: pytest.MonkeyPatch) -> None:
    _rotate()
    monkeypatch.setattr(services, "_refuse_second_next", lambda _: None)
    _rotate()
    with pytest.raises(InvalidStateError, match="same time"):
        _rotate()
    assert Key.objects.count() == 2


def test_ensure_key_makes_one_and_keeps_it() -> None:
    first = ensure_key(purpose="receipt", actor=ACTOR, now=NOW)
    assert ensure_key(purpose="receipt", actor=ACTOR, now=NOW) == first
    assert Key.objects.count() == 1
    disable_key(kid=first.kid, actor=ACTOR, now=NOW, even_last=True)
    after = ensure_key(purpose="receipt", actor=ACTOR, now=NOW)
    # It is not the purpose's first key: verifiers hold an older set, so it waits like any other.
    assert after.state == "next"


def test_ensure_key_overtaken_returns_the_winner_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(**arguments: object) -> Key:
        _rotate(purpose="audit")
        raise InvalidStateError("Another audit key was made at the same time.")

    monkeypatch.setattr(services, "rotate_key", overtaken)
    assert ensure_key(purpose="audit", actor=ACTOR, now=NOW) == Key.objects.get()


def test_an_unknown_purpose_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="purpose"):
        _rotate(purpose="everything")


def _token(by: str, now: datetime) -> str:
    agent = LocalSigner(PrivateKey.generate()).public
    issued = int(now.timestamp())
    claims = build_claims(
        issuer="https://registry.example",
        audience="https://sp.example",
        subject="someone",
        agent_id="0192f1c8-0000-7000-8000-000000000001",
        jti="jti",
        issued_at=issued,
        expires_at=issued + 900,
        jkt=agent.thumbprint,
        grant_id="0192f1c8-0000-7000-8000-000000000002",
        grant_version=1,
        capabilities=[],
        has_envelope=False,
    )
    key = Key.objects.get(kid=by)
    return sign_token(claims, backends.open_signer(key.uri, parse_jwk(key.public_jwk)))


def _read(token: str, now: datetime) -> None:
    verify_access_token(
        token,
        keys=verification_keys(purpose="token", now=now),
        expected_issuer="https://registry.example",
        expected_audience="https://sp.example",
        now=int(now.timestamp()),
    )


def test_JT_65_token_of_a_retired_key_is_unknown_after_the_overlap() -> None:
    old = _rotate()
    _rotate()
    _read(_token(old.kid, SWITCH - timedelta(seconds=1)), SWITCH + timedelta(seconds=890))
    # A process that still holds the old key signs a token that is otherwise valid.
    late = SWITCH + TOKEN_OVERLAP
    _read(_token(old.kid, late - timedelta(seconds=5)), late - timedelta(seconds=1))
    for recorded in (False, True):
        if recorded:
            promote_due_keys(now=late)
        with pytest.raises(InvalidTokenError) as refused:
            _read(_token(old.kid, late), late)
        assert refused.value.reason == "unknown"


def test_JK_18_a_disabled_key_is_refused_and_unpublished_at_once() -> None:
    old = _rotate()
    new = _rotate()
    token = _token(old.kid, NOW)
    _read(token, NOW)
    disable_key(kid=old.kid, actor=ACTOR, now=NOW, even_last=True)
    with pytest.raises(InvalidTokenError):
        _read(token, NOW)
    assert [key["kid"] for key in public_jwks(purpose="token", now=NOW)["keys"]] == [new.kid]
    with pytest.raises(TemporarilyUnavailableError):
        signer(purpose="token", now=NOW)
    assert _kid(SWITCH) == new.kid
    assert _events().count(("kms.key.disabled", old.kid)) == 1


def test_a_disabled_key_never_returns_and_is_disabled_once() -> None:
    old = _rotate()
    _rotate()
    assert disabled_keys(purpose="token", now=NOW) == {}
    disable_key(kid=old.kid, actor=ACTOR, now=NOW, even_last=True)
    assert list(disabled_keys(purpose="token", now=NOW)) == [old.kid]
    assert disabled_keys(purpose="audit", now=NOW) == {}
    events = Event.objects.count()
    with pytest.raises(InvalidStateError):
        disable_key(kid=old.kid, actor=ACTOR, now=NOW)
    with pytest.raises(NotFoundError):
        disable_key(kid="no such key", actor=ACTOR, now=NOW)
    assert Event.objects.count() == events
    for state in ("next", "active", "retired"):
        with pytest.raises(IntegrityError), transaction.atomic():
            Key.objects.filter(pk=old.pk).update(state=state, disabled_at=None, retired_at=NOW)


def test_disabling_the_new_key_after_its_switch_restores_no_old_key() -> None:
    _rotate()
    new = _rotate()
    disable_key(kid=new.kid, actor=ACTOR, now=SWITCH, even_last=True)
    with pytest.raises(TemporarilyUnavailableError):
        signer(purpose="token", now=SWITCH)


@pytest.mark.parametrize(
    ("old", "new", "possible"),
    [
        ("next", "active", True), ("next", "disabled", True), ("next", "retired", False),
        ("active", "retired", True), ("active", "disabled", True), ("active", "next", False),
        ("retired", "disabled", True), ("retired", "active", False), ("retired", "next", False),
    ],
)  # fmt: skip
def test_the_database_allows_only_the_steps_of_a_key_s_life(
    old: str, new: str, possible: bool
) -> None:
    key = _rotate()
    if old == "next":
        key = _rotate()
        Key.objects.exclude(pk=key.pk).update(state="retired", retired_at=NOW)
    elif old == "retired":
        Key.objects.filter(pk=key.pk).update(state="retired", retired_at=NOW)
    change = {"state": new, "retired_at": NOW, "disabled_at": NOW if new == "disabled" else None}
    if possible:
        assert Key.objects.filter(pk=key.pk).update(**change) == 1
        return
    with pytest.raises(IntegrityError, match="cannot go there"), transaction.atomic():
        Key.objects.filter(pk=key.pk).update(**change)


def test_purposes_do_not_share_keys() -> None:
    kids = {purpose: _rotate(purpose=purpose).kid for purpose in ("token", "audit", "receipt")}
    for purpose, kid in kids.items():
        assert _verifying(NOW, purpose) == {kid}
        assert _kid(NOW, purpose) == kid


def test_a_failing_backend_is_unavailability_and_its_words_stay_in_the_log(
    key_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = _rotate()
    (key_directory / key.uri.removeprefix("file:")).chmod(0o644)
    services._open_signer.cache_clear()
    with pytest.raises(TemporarilyUnavailableError) as refused:
        signer(purpose="token", now=NOW).sign(b"m")
    assert str(key_directory) not in str(refused.value)
    assert "chmod 600" in caplog.text
    key_directory.chmod(0o755)
    with pytest.raises(TemporarilyUnavailableError):
        _rotate()
    assert Key.objects.count() == 1


def test_a_backend_that_fails_while_signing_is_unavailability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _rotate()
    ready = signer(purpose="token", now=NOW)

    def broken(self: PrivateKey, message: bytes) -> bytes:
        raise backends.BackendError("the module took its key away")

    monkeypatch.setattr(PrivateKey, "sign", broken)
    with pytest.raises(TemporarilyUnavailableError) as refused:
        ready.sign(b"message")
    assert "module" not in str(refused.value)


def test_a_key_file_that_was_exchanged_signs_nothing() -> None:
    key = _rotate()
    uri, _ = backends.create(purpose="token")
    Key.objects.filter(pk=key.pk).update(uri=uri)
    with pytest.raises(TemporarilyUnavailableError):
        signer(purpose="token", now=NOW).sign(b"m")


def test_the_opened_key_is_kept_and_its_state_is_not() -> None:
    key = _rotate()
    services._open_signer.cache_clear()
    for _ in range(3):
        _kid(NOW)
    assert services._open_signer.cache_info().misses == 1
    assert services._open_signer.cache_info().maxsize == services._CACHED_KEYS
    disable_key(kid=key.kid, actor=ACTOR, now=NOW, even_last=True)
    with pytest.raises(TemporarilyUnavailableError):
        signer(purpose="token", now=NOW)


def test_the_audit_signer_is_found_by_its_path() -> None:
    from audit.checkpoints.signer_lookup import audit_signer

    key = _rotate(purpose="audit")
    found = audit_signer(now=NOW)
    assert found.kid == key.kid
    found.public.verify(b"checkpoint", found.sign(b"checkpoint"), alg=found.alg)
