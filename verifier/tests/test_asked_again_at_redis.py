"""A service provider repeats a call that spent its proof in Redis and then rolled back."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from threading import Timer
from typing import Any

import pytest
from django.conf import settings

from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import IdempotencyMismatchError, TemporarilyUnavailableError
from agentauth.protocol.usage_counters import Rate
from audit.models import Event
from tests import endpoint_modes
from verifier import stores
from verifier.models import GrantLedger, ProviderCall
from verifier.services.freshness import DecisionBasis
from verifier.stores import SpendResult, StoreCall, database_decisions, redis_keys
from verifier.stores.lua_scripts import Code
from verifier.tests.calls import decided
from verifier.tests.scene import PAY, READ, key, pay, scene
from verifier.tests.script_stage import NOW, RATE, SHARD, Stage
from verifier.tests.test_lock_orders import ledgers_held
from verifier.tests.test_store_contract import BUDGET, call, named, payment, words

pytestmark = [pytest.mark.redis, pytest.mark.django_db(transaction=True)]

SECOND = 1_000_000
# Any 32 bytes are a valid mark, including pattern characters and a terminating NUL.
MARK = bytes(range(32, 62)) + b"\x00%"


@pytest.fixture
def at_home(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(settings, "REDIS_URL", redis_url)
    with endpoint_modes.use_redis_replay_cache(redis_url):
        yield


def hold(stage: Stage, mark: bytes = MARK, **more: Any) -> Code:
    return stage.judge(mode="hold", jti="one", mark=mark, rate=None, **more).code


# ---- the script


def test_the_very_same_call_passes_again_for_a_while_and_no_other_ever(stage: Stage) -> None:
    proof = redis_keys.proof_key(SHARD, "jkt", "one")
    assert hold(stage) is Code.OK
    # Clocks of two hosts differ, so times may go back. The time of the first call counts.
    for seconds in (1, -10, 19):
        assert hold(stage, now=NOW + seconds * SECOND) is Code.OK
    before = stage.everything()
    assert [hold(stage, now=NOW + seconds * SECOND) for seconds in (20, 59)] == [Code.UNSURE] * 2
    assert [hold(stage, now=NOW + seconds * SECOND) for seconds in (60, 90)] == [Code.REPLAYED] * 2
    for other in (b"", MARK[:-1] + b"#", b"1" * 32):
        assert hold(stage, other) is Code.REPLAYED
    # A dry run has no mark.
    assert hold(stage, b"", ttl=0) is Code.REPLAYED
    assert stage.everything() == before
    for mode in ("yes", "no"):
        assert stage.judge(mode=mode, jti="one").code is Code.REPLAYED
    # The proof keeps the expiry that the first call set.
    assert hold(stage, ttl=300_000) is Code.OK
    assert 100_000 < stage.client.pttl(proof) <= 125_000


@pytest.mark.parametrize("mode", ["yes", "no", "hold"])
def test_what_spent_a_proof_without_a_name_is_not_this_call(stage: Stage, mode: str) -> None:
    stage.judge(mode=mode, jti="one")
    assert hold(stage) is Code.REPLAYED


def test_one_use_is_set_aside_however_often_it_is_asked(stage: Stage) -> None:
    stage.judge()
    ask: Callable[..., Any] = partial(stage.judge, mode="hold", jti="one", mark=MARK)
    held = ask()
    assert held.tat_us == held.before_us + RATE.interval_us
    assert [ask(now=NOW + each) for each in (1, 2)] == [held, held]
    assert stage.tat() == held.tat_us
    # Another call takes the last use, which is not the one reserved for this call.
    assert stage.judge().code is Code.OK
    assert ask() == held
    assert stage.give_back(held).tat_us == held.tat_us
    # Too late, the reply reports no use that could be given back.
    for seconds in (30, 61):
        assert (late := ask(now=NOW + seconds * SECOND)).tat_us == late.before_us


def test_a_first_use_of_a_rate_is_set_aside_once(stage: Stage) -> None:
    ask: Callable[..., Any] = partial(stage.judge, mode="hold", jti="one", mark=MARK)
    held = ask()
    assert (held.before_us, held.tat_us) == (None, NOW + RATE.interval_us)
    assert ask(now=NOW + 7) == held


def test_exhausted_rate_is_judged_again_and_then_holds_a_use(stage: Stage) -> None:
    rate = Rate(per_minute=60, burst=1)
    stage.judge(rate=rate)
    ask: Callable[..., Any] = partial(stage.judge, mode="hold", jti="one", mark=MARK, rate=rate)
    assert ask().code is Code.RATE
    held = ask(now=NOW + SECOND)
    assert (held.code, held.tat_us) == (Code.OK, NOW + 2 * SECOND)
    assert ask(now=NOW + 2 * SECOND) == held
    assert hold(stage, now=NOW + 20 * SECOND) is Code.UNSURE


def test_redis_repeats_its_decision_for_a_named_call_without_writing(stage: Stage) -> None:
    ask: Callable[..., Any] = partial(stage.judge, jti="one", mark=MARK, told=b"the id")
    first = ask()
    assert first.code is Code.OK
    before = stage.everything()
    # Clocks of two hosts differ, so times may go back.
    for seconds in (1, -10, 59):
        again = ask(now=NOW + seconds * SECOND, told=b"another id")
        assert (again.code, again.number) == (Code.AGAIN, 0)
        assert again.kept == b"a%d %d 0 the id" % (NOW, first.tat_us)
        # A no does not outrank it either, unless the token has ended.
        assert ask(mode="no", told=b"{}").kept == again.kept
    assert stage.everything() == before
    for other in (b"", MARK[:-1] + b"#"):
        assert ask(mark=other).code is Code.REPLAYED
    assert stage.outcomes() == "arr"


def test_a_token_that_has_ended_outranks_its_yes_and_not_its_no(stage: Stage) -> None:
    ask: Callable[..., Any] = partial(stage.judge, mark=MARK, told=b"the id")
    no: Callable[..., Any] = partial(ask, mode="no", outranks=True, told=b'{"a": "no\n"}')
    assert ask(jti="one").code is Code.OK
    assert [no(jti="one").code for _ in range(2)] == [Code.OK] * 2
    assert no(jti="two").code is Code.OK
    for again in (no(jti="two"), ask(jti="two")):
        assert (again.code, again.kept) == (Code.AGAIN, b'v%d  0 {"a": "no\n"}' % NOW)
    assert stage.outcomes() == "avvv"


def test_retry_repeats_that_the_rate_was_exceeded(stage: Stage) -> None:
    rate = Rate(per_minute=60, burst=1)
    stage.judge(rate=rate)
    ask: Callable[..., Any] = partial(stage.judge, jti="one", mark=MARK, rate=rate, told=b"the id")
    assert ask().code is Code.RATE
    assert ask(now=NOW + 2 * SECOND).kept == b"l%d %d %d the id" % (NOW, NOW + SECOND, SECOND)


def test_a_rehearsal_under_a_name_keeps_nothing(stage: Stage) -> None:
    """Python sends no mark for a dry run, and the script would not keep one."""
    for _ in range(2):
        assert stage.judge(jti="one", mark=MARK, ttl=0).code is Code.OK
    assert stage.judge(jti="one", mark=MARK).code is Code.OK


def test_a_call_goes_on_where_it_began(stage: Stage) -> None:
    """A change of the grant may route the same call the other way."""
    assert hold(stage) is Code.OK
    assert [stage.judge(mode=mode, jti="one", mark=MARK).code for mode in ("yes", "no")] == [
        Code.HELD
    ] * 2
    stage.judge(mode="no", jti="two", mark=MARK, told=b"{}")
    assert stage.judge(mode="hold", jti="two", mark=MARK).kept == b"v%d  0 {}" % NOW


@pytest.mark.history
# ---- the decision


def fail(one: StoreCall, patch: pytest.MonkeyPatch) -> None:
    """Decide the call, and fail before the commit."""

    def aborted() -> None:
        raise TemporarilyUnavailableError

    with patch.context() as broken:
        broken.setattr(database_decisions, "check_committable", aborted)
        with pytest.raises(TemporarilyUnavailableError):
            decided(one)


@pytest.mark.usefixtures("at_home")
def test_a_commit_that_fails_costs_the_call_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    place = scene(PAY, max_uses=9, max_requests_per_minute=6, max_burst=1)
    mine = replace(payment(place), provider_key=named(place))
    for _ in range(2):
        fail(mine, monkeypatch)
    assert not ProviderCall.objects.exists()
    assert [words(decided(mine)) for _ in range(2)] == ["yes", "recalled"]
    assert GrantLedger.objects.get().uses == 1
    other = replace(mine, provider_key=replace(named(place), digest=sha256(b"another key")))
    assert words(decided(other)) == "replayed"
    assert words(decided(payment(place))) == "rate"


@pytest.mark.usefixtures("at_home")
def test_what_was_set_aside_is_not_given_back_before_the_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the use is given back twice, the second time at the expense of another call."""
    place = scene(PAY, budgets=[BUDGET], max_requests_per_minute=6, max_burst=1)
    dear = replace(payment(place, "11.00"), provider_key=named(place))
    fail(dear, monkeypatch)
    told = [words(decided(payment(place)))]
    assert words(decided(dear)) == "budget"
    told += [words(decided(payment(place))) for _ in range(2)]
    assert told == ["rate", "yes", "rate"]


@pytest.mark.usefixtures("at_home")
def test_committed_call_never_passes_again_whatever_happens_to_its_row() -> None:
    place = scene(PAY)
    mine = replace(payment(place), provider_key=named(place))
    assert words(decided(mine)) == "yes"
    # From this time on, the row no longer keeps its name.
    assert words(decided(replace(mine, now=mine.now + timedelta(seconds=60)))) == "replayed"
    for seconds, told in ((25, "unsure"), (59, "unsure"), (60, "replayed")):
        ProviderCall.objects.all().delete()
        later = replace(mine, now=mine.now + timedelta(seconds=seconds))
        if told == "unsure":
            with pytest.raises(TemporarilyUnavailableError):
                decided(later)
            assert not ProviderCall.objects.exists()
        else:
            assert words(decided(later)) == told
    assert GrantLedger.objects.get().uses == 1


@pytest.mark.usefixtures("at_home")
def test_another_body_under_the_key_is_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    place, operation = scene(PAY), key()
    mine = replace(call(place, pay("1.00"), idempotency_key=operation), provider_key=named(place))
    fail(mine, monkeypatch)
    assert words(decided(replace(mine, provider_key=named(place, b"2")))) == "replayed"


@pytest.mark.usefixtures("at_home")
def test_other_bodies_under_one_key_never_give_back_uses_of_the_rate() -> None:
    """The same bytes pass the script again, so each repeat would give back uses of other calls."""
    place = scene(PAY, max_uses=9, max_requests_per_minute=6, max_burst=3)
    mine = replace(payment(place), provider_key=named(place))
    assert words(decided(mine)) == "yes"
    other = replace(payment(place), provider_key=named(place, b"2"))
    told = []
    for _ in range(3):
        with pytest.raises(IdempotencyMismatchError):
            decided(other)
        told.append(words(decided(payment(place))))
    assert told == ["yes", "rate", "rate"]


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("dry_run", [False, True])
def test_yes_that_a_repeat_finds_is_not_recorded_as_withheld(
    dry_run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run has no name in the store and keeps nothing, so its repeat is a new yes."""
    place, check = scene(READ), DecisionBasis.check
    mine = replace(call(place, dry_run=dry_run), provider_key=None if dry_run else named(place))

    def too_late(self: DecisionBasis, spare: float = 0) -> None:
        check(self, spare)
        if not spare:
            raise TemporarilyUnavailableError

    with monkeypatch.context() as late:
        late.setattr(DecisionBasis, "check", too_late)
        with pytest.raises(TemporarilyUnavailableError):
            decided(mine)
    assert words(decided(mine)) == ("yes" if dry_run else "recalled")
    assert Event.objects.filter(reason="withheld").count() == int(dry_run)


@pytest.mark.usefixtures("at_home")
def test_named_call_that_waited_too_long_is_not_decided() -> None:
    """The kept answer of its first try may have expired. An unnamed call needs only its proof."""
    place, spent = scene(PAY), SpendResult(first=True, elsewhere=True)
    late, named_one = (
        replace(each, now=each.now - stores._MOST_WAIT) for each in (payment(place), payment(place))
    )
    assert words(database_decisions.decide_one(late, spent)) == "yes"
    with pytest.raises(TemporarilyUnavailableError):
        database_decisions.decide_one(replace(named_one, provider_key=named(place)), spent)


@pytest.mark.postgres
@pytest.mark.usefixtures("at_home")
def test_locked_call_with_a_spent_proof_is_decided_when_lock_is_free() -> None:
    place = scene(PAY, max_uses=9, max_requests_per_minute=6, max_burst=2)
    assert words(decided(payment(place))) == "yes"
    mine = replace(payment(place), provider_key=named(place))
    done, holder = ledgers_held()
    Timer(0.3, done.set).start()
    assert words(decided(mine)) == "yes"
    holder.join(20)
    assert [words(decided(each)) for each in (mine, payment(place))] == ["recalled", "rate"]
