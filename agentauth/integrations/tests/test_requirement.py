"""`requires`: a mistake is named at import; the act is exactly what the request says."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from agentauth.integrations.incoming_request import Incoming
from agentauth.integrations.requirement import ConfigurationError, requires
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.money import Money
from agentauth.sdk import Action

JSON = ("Content-Type", "application/json")
EUR = {"value": "20.00", "currency": "EUR"}


def incoming(
    body: object = None, *headers: tuple[str, str], target: str = "/v1/x", **parameters: object
) -> Incoming:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Incoming("POST", target, headers or [JSON], parameters, lambda: content)


async def coroutine(_request: Incoming) -> Money:
    return Money.of("1.00", "EUR")


def nothing() -> dict[str, object]:
    return {}


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown kind": (
        lambda: requires("append", "calendar"),
        "'append' is no kind of act",
    ),
    "custom without a name": (lambda: requires("custom:acme", "contacts"), "namespace"),
    "odd resource": (lambda: requires("read", "/calendar/"), "requires.resource"),
    "climbing resource": (lambda: requires("read", "calendar/../files"), "requires.resource"),
    "open placeholder": (lambda: requires("read", "calendar/{id"), "placeholder"),
    "empty placeholder": (lambda: requires("read", "calendar/{}"), "placeholder"),
    "placeholder of another type": (lambda: requires("read", "calendar/{id:int}"), "placeholder"),
    "kind is no text": (lambda: requires(1, "calendar"), "`kind` of requires"),  # type: ignore[arg-type]
    "resource is no text": (lambda: requires("read", None), "`resource` of"),  # type: ignore[arg-type]
    "transact without amount": (lambda: requires("transact", "payments"), "`amount` is missing"),
    "amount of a read": (lambda: requires("read", "x", amount="amount"), "only for the kind"),
    "amount is a number": (lambda: requires("transact", "x", amount=5), "`amount` must be"),  # type: ignore[arg-type]
    "amount is a coroutine": (
        lambda: requires("transact", "x", amount=coroutine),  # type: ignore[arg-type]
        "plain function",
    ),
    "function without a parameter": (
        lambda: requires("read", "x", arguments=nothing),  # type: ignore[arg-type]
        "one argument",
    ),
    "arguments are one text": (lambda: requires("read", "x", arguments="size"), r"\['size'\]"),
    "arguments are a set": (lambda: requires("read", "x", arguments={"size"}), "a list of"),  # type: ignore[arg-type]
    "an argument is no text": (lambda: requires("read", "x", arguments=[1]), "each body member"),  # type: ignore[list-item]
    "an argument twice": (lambda: requires("read", "x", arguments=["a", "a"]), "once"),
    "odd argument": (lambda: requires("read", "x", arguments=["a b"]), "argument name"),
    "members without a body": (
        lambda: requires("read", "x", arguments=["a"], reads_body=False),
        "reads_body",
    ),
}


@pytest.mark.parametrize(("make", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_requirement_is_named_at_import(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make()


def test_an_unknown_placeholder_is_named_with_those_that_exist() -> None:
    def view(_request: object, number: int, name: str) -> None:
        raise AssertionError(number, name)

    needed = requires("read", "calendar/{id}")
    with pytest.raises(
        ConfigurationError, match=r"\{id\}.*view has no.*only _request, name, number"
    ):
        needed.check_function(view)
    requires("read", "calendar/{name}/{number}").check_function(view)
    needed.check_function(lambda **_parameters: None)


def test_a_route_without_the_parameter_gives_no_act() -> None:
    with pytest.raises(ConfigurationError, match="it has none"):
        requires("read", "calendar/{id}").action(incoming())


@pytest.mark.parametrize(
    ("value", "resource"),
    [
        ("work", "calendar/work"),
        (7, "calendar/7"),
        ("a/b", "calendar/a%2Fb"),
        ("..", "calendar/.."),
        ("", "calendar/"),
        ("ü", "calendar/%C3%BC"),
        ("%2F", "calendar/%252F"),
        ("{id}", "calendar/%7Bid%7D"),
        ("\udc80", "calendar/%3F"),
    ],
)
def test_a_path_parameter_is_one_segment_of_the_resource(value: object, resource: str) -> None:
    assert requires("read", "calendar/{id}").action(incoming(id=value)).resource == resource


def test_a_parameter_that_is_a_path_spans_segments() -> None:
    act = requires("read", "files/{name:path}").action(incoming(name="a/b c"))
    assert act == Action("read", "files/a/b%20c")


def test_amount_and_arguments_come_from_the_body() -> None:
    needed = requires("transact", "payments", amount="sum", arguments={"payee": "to", "note": "n"})
    assert needed.reads_body
    act = needed.action(incoming({"sum": EUR, "to": "ACME", "other": 1}))
    assert act == Action("transact", "payments", Money.of("20.00", "EUR"), {"payee": "ACME"})


def test_amount_and_arguments_come_from_functions() -> None:
    needed = requires(
        "transact",
        "payments",
        amount=lambda request: Money.of(request.member("cents"), "EUR"),
        arguments=lambda request: {"day": request.query_value("day")},
    )
    act = needed.action(incoming({"cents": "1.00"}, target="/v1/x?day=1"))
    assert act == Action("transact", "payments", Money.of("1.00", "EUR"), {"day": "1"})
    assert needed.reads_body


def test_a_function_that_reads_the_body_says_so() -> None:
    """An upload is not read here, so such a function would see an empty body."""
    needed = requires(
        "write", "x", arguments=lambda request: {"a": request.member("a")}, reads_body=False
    )
    assert not needed.reads_body
    with pytest.raises(ConfigurationError, match="leave out `reads_body=False`"):
        needed.action(incoming({"a": 1}))


def test_a_custom_act_has_namespace_and_name() -> None:
    needed = requires("custom:acme.crm.merge", "contacts/{id}")
    act = needed.action(incoming(id="7"))
    assert (act.namespace, act.name, act.resource) == ("acme.crm", "merge", "contacts/7")
    assert repr(needed) == "requires(custom:acme.crm.merge:contacts/{id})"


@pytest.mark.parametrize(
    "needed",
    [
        requires("transact", "x", amount=lambda _request: "20.00 EUR"),  # type: ignore[arg-type,return-value]
        requires("read", "x", arguments=lambda _request: ["size"]),  # type: ignore[arg-type,return-value]
    ],
)
def test_a_function_of_the_wrong_type_allows_nothing(needed: Any) -> None:
    with pytest.raises(ConfigurationError, match="must return"):
        needed.action(incoming())


FORM = ("Content-Type", "application/x-www-form-urlencoded")
UNREADABLE: dict[str, tuple[Incoming, str]] = {
    "missing": (incoming({}), "amount: is missing"),
    "no money": (incoming({"amount": "20.00"}), "amount"),
    "a float": (incoming({"amount": {"value": 20.0, "currency": "EUR"}}), "decimal string"),
    "twice": (incoming(b'{"amount": 1, "amount": 2}'), "twice"),
    "a list": (incoming([EUR]), "object"),
    "no JSON": (incoming(b"amount=20"), "not JSON"),
    "as a form": (incoming({"amount": EUR}, FORM), "Content-Type"),
    "two types": (incoming({"amount": EUR}, JSON, FORM), "Content-Type"),
    "another charset": (
        incoming({"amount": EUR}, ("content-type", "application/json; charset=utf-7")),
        "Content-Type",
    ),
    "compressed": (incoming({"amount": EUR}, JSON, ("content-encoding", "gzip")), "Encoding"),
    "too long": (incoming({"amount": EUR, "x": "x" * 65_536}), "at most 65,536 bytes"),
}


@pytest.mark.parametrize(("request_", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_body_that_two_readers_could_read_differently_is_refused(
    request_: Incoming, said: str
) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        requires("transact", "payments", amount="amount").action(request_)


def test_a_charset_of_utf_8_is_plain_json() -> None:
    kind = ("CONTENT-TYPE", 'Application/JSON; charset="UTF-8"')
    act = requires("transact", "payments", amount="amount").action(incoming({"amount": EUR}, kind))
    assert act.amount == Money.of("20.00", "EUR")


@pytest.mark.parametrize("value", [1.5, None, ["x"], {"a": 1}, 2**53])
def test_an_argument_is_a_text_a_boolean_or_an_integer(value: object) -> None:
    with pytest.raises(InvalidRequestError):
        requires("read", "x", arguments=["size"]).action(incoming({"size": value}))


@pytest.mark.parametrize("target", ["/v1/x", "/v1/x?day=1&day=2", "/v1/x?day=1#&day=2"])
def test_a_query_parameter_counts_if_it_is_there_once(target: str) -> None:
    with pytest.raises(InvalidRequestError, match="exactly once"):
        incoming(target=target).query_value("day")


def test_neither_headers_nor_body_are_shown() -> None:
    assert "secret" not in repr(incoming({"a": "secret"}, ("Authorization", "DPoP secret")))
