"""A validator of a tool's own, which its schema does not show, cannot change what was judged."""

import asyncio
import time
from contextlib import nullcontext
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from mcp.server.mcpserver import Context, MCPServer
from pydantic import AfterValidator, BaseModel, BeforeValidator, StringConstraints

from agentauth.mcp.protect import Protected
from agentauth.mcp.tests.guarded import ENDPOINT, Site, Verify
from agentauth.mcp.tool_action import ToolAction
from agentauth.mcp.tool_schema_validation import ToolSchema
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.money import Money
from agentauth.sdk.tests.fake_registry import URL, FakeRegistry, grant, registered
from agentauth.sdk.verifier import VerifierClient
from tests.time_limits import within

Tidy = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True)]
Renamed = Annotated[str, AfterValidator(lambda text: {"work": "boss"}.get(text, text))]
Raised = Annotated[int, AfterValidator(lambda number: number + 1)]


def picky(text: str) -> str:
    if text == "no":
        raise ValueError("not this one")
    if text == "crash":
        raise RuntimeError("a secret of the server")
    return text


Rounded = Annotated[float, AfterValidator(round)]
# The schema of these two allows several types.
Whole = Annotated[Decimal, AfterValidator(lambda number: number.quantize(Decimal(1)))]
Unlimited = Annotated[
    int | str | None, AfterValidator(lambda limit: None if limit == "none" else limit)
]


class Price(BaseModel):
    value: Annotated[str, BeforeValidator(lambda text: f"9{text}" if text == "1.00" else text)]
    currency: Annotated[str, StringConstraints(to_upper=True)]
    note: str = "none"


class OwnSite(Site):
    """A server whose tools have validators, over the official SDK."""

    def server(self) -> MCPServer[Any]:
        server = MCPServer[Any]("calendar", log_level="CRITICAL")

        def tidy(name: Tidy, title: Tidy = "") -> str:
            self.ran.append(("tidy", (name, title)))
            return "done"

        def renamed(name: Renamed, context: Context) -> str:
            self.ran.append(("renamed", name))
            return "done"

        def pay(amount: Price) -> str:
            self.ran.append(("pay", amount.value))
            return "paid"

        def counted(number: Raised, word: Annotated[str, AfterValidator(picky)] = "yes") -> str:
            self.ran.append(("counted", (number, word)))
            return "done"

        def rounded(amount: Rounded, price: Decimal = Decimal(0)) -> str:
            self.ran.append(("rounded", amount))
            return "paid"

        def priced(price: Whole, limit: Unlimited = None, at: datetime | None = None) -> str:
            self.ran.append(("priced", price))
            return "paid"

        def matched(text: Annotated[str, StringConstraints(pattern="^(a+)+$")]) -> str:
            self.ran.append(("matched", text))
            return "done"

        def found(text: Annotated[str, StringConstraints(pattern="(a+a+)+b")]) -> str:
            self.ran.append(("found", text))
            return "done"

        for tool in (tidy, renamed, pay, counted, rounded, priced, matched, found):
            server.add_tool(tool, structured_output=False)
        server.add_tool(tidy, name="tidy_name", structured_output=False)
        server.add_tool(pay, name="pay_as_told", structured_output=False)
        server.add_tool(counted, name="uncounted", structured_output=False)
        return server

    def protected(self, server: MCPServer[Any] | None = None) -> Protected:
        calendar = ("read", "calendar/{name}")
        tools = {
            "tidy": ToolAction(*calendar),
            # Only the name is judged, so the title may be tidied.
            "tidy_name": ToolAction(*calendar, arguments=()),
            "renamed": ToolAction(*calendar),
            "pay": ToolAction("transact", "payments", amount="amount"),
            "pay_as_told": ToolAction(
                "transact", "payments", amount=lambda told: Money.parse(told["amount"], "amount")
            ),
            "counted": ToolAction("read", "calendar/work"),
            "rounded": ToolAction(
                "transact",
                "payments",
                amount=lambda told: Money.of(f"{told['amount']:.2f}", "EUR"),
            ),
            "priced": ToolAction(
                "transact",
                "payments",
                amount=lambda told: Money.of(f"{Decimal(str(told['price'])):.2f}", "EUR"),
            ),
            "matched": ToolAction("read", "calendar/work"),
            "found": ToolAction("read", "calendar/work"),
            "uncounted": ToolAction("read", "calendar/work", arguments=()),
        }
        verifier = VerifierClient(URL, "sp", "secret", transport=httpx.MockTransport(self.verify))
        return Protected(server or self.server(), tools, endpoint_url=ENDPOINT, verifier=verifier)


@pytest.fixture
def site(registry: FakeRegistry, tmp_path: Path) -> Site:
    registry.grants.append(grant())
    registered(registry, tmp_path)
    return OwnSite(Verify(registry.now), registry, tmp_path)


def called(site: Site, tool: str, arguments: dict[str, Any], era: str = "2026-07-28") -> str:
    async def story() -> str:
        async with site.session(era=era) as session:
            result = await session.call_tool(tool, arguments)
            return f"{'error' if result.is_error else 'ok'}: {result.content[0].text}"  # type: ignore[union-attr]

    return asyncio.run(story())


@pytest.mark.parametrize("era", ["2026-07-28", "legacy"])
@pytest.mark.parametrize(
    ("tool", "arguments", "named"),
    [
        ("tidy", {"name": " work"}, "name"),
        ("tidy", {"name": "Work"}, "name"),
        ("tidy", {"name": "work", "title": "Lunch"}, "title"),
        ("tidy_name", {"name": "WORK"}, "name"),
        ("renamed", {"name": "work"}, "name"),
        ("pay", {"amount": {"value": "1.00", "currency": "EUR"}}, "amount"),
        ("pay", {"amount": {"value": "2.00", "currency": "eur"}}, "amount"),
        ("pay", {"amount": {"value": "2.00", "currency": "EUR", "more": "x"}}, "amount"),
        ("pay_as_told", {"amount": {"value": "1.00", "currency": "EUR"}}, "amount"),
        ("counted", {"number": 1}, "number"),
        ("rounded", {"amount": 7.6}, "amount"),
        ("priced", {"price": 7.6}, "price"),
        ("priced", {"price": "7.60"}, "price"),
        ("priced", {"price": "7.00", "limit": "none"}, "limit"),
    ],
)
def test_value_that_a_validator_changes_is_refused_before_verify_is_asked(
    site: Site, tool: str, arguments: dict[str, Any], named: str, era: str
) -> None:
    said = called(site, tool, arguments, era)
    assert said.startswith("error: "), said
    assert f"The tool would change the value of the argument '{named}'" in said
    assert (site.ran, site.verify.asked) == ([], [])


@pytest.mark.parametrize(
    ("tool", "arguments", "got"),
    [
        ("tidy", {"name": "work", "title": "lunch"}, ("work", "lunch")),
        ("tidy_name", {"name": "work", "title": " Lunch "}, ("work", "lunch")),
        ("pay", {"amount": {"value": "2.00", "currency": "EUR"}}, "2.00"),
        ("pay_as_told", {"amount": {"value": "2.00", "currency": "EUR"}}, "2.00"),
        ("uncounted", {"number": 1}, (2, "yes")),
        ("rounded", {"amount": 7}, 7.0),
        ("rounded", {"amount": 7.0, "price": 0.1}, 7.0),
        ("priced", {"price": "7.00"}, 7),
        ("priced", {"price": "07.00", "limit": "5"}, 7),
        ("priced", {"price": "7.00", "at": "2026-11-25T09:30:00+00:00"}, 7),
        ("found", {"text": "aab"}, "aab"),
    ],
)
def test_value_that_no_validator_changes_reaches_the_tool(
    site: Site, tool: str, arguments: dict[str, Any], got: object
) -> None:
    assert called(site, tool, arguments).startswith("ok: ")
    assert [each[1] for each in site.ran] == [got]
    assert len(site.verify.asked) == 1


@pytest.mark.parametrize("word", ["no", "crash"])
def test_value_that_a_validator_refuses_is_not_counted(site: Site, word: str) -> None:
    said = called(site, "uncounted", {"number": 1, "word": word})
    assert said.startswith("error: ")
    assert "secret" not in said
    assert (site.ran, site.verify.asked) == ([], [])


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize(
    ("tool", "text", "is_taken"),
    [
        ("matched", "a" * 40 + "!", False),
        # A match, which Python's `re` finds only after all ways to divide the letters before it.
        ("found", "a" * 40 + "!" + "aab", True),
    ],
)
def test_pattern_is_matched_in_linear_time(
    site: Site, tool: str, text: str, is_taken: bool, is_known: bool
) -> None:
    """`is_known`: what the SDK validates with; a server that lists other tools does not tell."""
    own = site.server()._tool_manager.get_tool(tool)
    assert own is not None
    schema = ToolSchema(own.parameters, own.fn_metadata if is_known else None)
    began = time.monotonic()
    with (
        nullcontext()
        if is_taken
        else pytest.raises(InvalidRequestError, match="'text' does not fit the tool's schema")
    ):
        schema.check({"text": text})
    assert time.monotonic() - began < within(1)


def test_value_that_the_sdk_refuses_never_meets_the_rest_of_the_schema(site: Site) -> None:
    own = site.server()._tool_manager.get_tool("counted")
    assert own is not None
    # The rest of this schema cannot be evaluated at all.
    schema = ToolSchema({"properties": {"number": {"$ref": "#/nowhere"}}}, own.fn_metadata)
    with pytest.raises(InvalidRequestError, match="'number' does not fit"):
        schema.check({"number": "x"})
