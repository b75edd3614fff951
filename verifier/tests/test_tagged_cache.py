"""A bounded cache with dependencies: what is evicted first, and that drops leave nothing behind."""

import random

from verifier.services.state_change_feed import Change
from verifier.services.tagged_cache import TaggedCache

Value = tuple[str, ...]


def subjects(value: Value) -> list[int]:
    return [hash(Change(*each.split())) for each in value]


def copies(bound: int = 3) -> TaggedCache[str, Value]:
    return TaggedCache(bound, subjects)


def test_a_change_drops_what_rests_on_it_and_leaves_no_trace() -> None:
    held = copies()
    held.keep("a", ("token a", "grant 1"))
    held.keep("b", ("token b", "grant 1"))
    held.keep("c", ("token c", "grant 2"))
    held.drop(Change("grant", "1"))
    assert (held.get("a"), held.get("b")) == (None, None)
    assert held.get("c") == ("token c", "grant 2")
    held.drop(Change("grant", "unknown"))
    held.drop(Change("token", "c"))
    assert len(held) == 0
    assert not held._resting


def test_replaced_copy_depends_only_on_its_new_subjects() -> None:
    held = copies()
    held.keep("a", ("human 1",))
    held.keep("a", ("human 2",))
    held.drop(Change("human", "1"))
    assert held.get("a") == ("human 2",)


def test_the_least_lately_asked_for_is_given_up_first() -> None:
    held = copies()
    for key in "abc":
        held.keep(key, (f"token {key}", "grant 1"))
    held.get("a")
    held.keep("d", ("token d", "grant 1"))
    assert [key for key in "abcd" if held.get(key)] == ["a", "c", "d"]
    assert hash(Change("token", "b")) not in held._resting
    held.clear()
    assert not held._resting
    assert held.get("a") is None


def test_what_is_over_is_given_up_from_the_old_end_a_few_at_a_time() -> None:
    held = copies(10)
    for number in range(6):
        held.keep(str(number), ("over x",) if number != 4 else ("alive x",))
    held.drop_ended(lambda value: value == ("over x",), most=3)
    assert len(held) == 3
    held.drop_ended(lambda value: value == ("over x",), most=3)
    # It stops at the first entry that is still alive.
    assert [key for key in map(str, range(6)) if held.get(key)] == ["4", "5"]


def test_it_is_the_same_as_a_plain_table_whatever_happens() -> None:
    rng, held, plain = random.Random(4), copies(1_000), dict[str, Value]()
    for _ in range(20_000):
        key, grant = str(rng.randrange(50)), str(rng.randrange(5))
        if rng.random() < 0.7:
            plain[key] = (f"token {key}", f"grant {grant}")
            held.keep(key, plain[key])
        else:
            change = rng.choice([Change("token", key), Change("grant", grant)])
            plain = {
                each: value for each, value in plain.items() if hash(change) not in subjects(value)
            }
            held.drop(change)
        assert len(held) == len(plain)
    assert {key: held.get(key) for key in plain} == plain
    resting = [keys if isinstance(keys, set) else {keys} for keys in held._resting.values()]
    assert sum(map(len, resting)) == 2 * len(plain)
