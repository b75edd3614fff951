"""A tool of AutoGen from an `AgentTool`; comes with the extra `autogen`.

AutoGen has no pause inside a tool call: `show` gets the link, and the tool waits for the person.
"""

from agentauth.sdk.decision_polling import Callback

from .agent_tool import AgentTool, PersonNeeded

try:
    from autogen_core import CancellationToken
    from autogen_core.tools import BaseTool, ParametersSchema, ToolSchema
    from pydantic import BaseModel, ConfigDict
except ImportError:
    raise ImportError(
        "For AutoGen, install the extra: pip install 'agentauth-sdk[autogen]'"
    ) from None


class _Arguments(BaseModel):
    """Whatever the model sent; `AgentTool` checks it."""

    model_config = ConfigDict(extra="allow")


class AutoGenTool(BaseTool[_Arguments, str]):
    """A tool for `AssistantAgent(tools=[…])`. `show` gets the link when a person must decide.

    If the person does not decide within the tool's `wait_seconds`, the result says so, and the
    model's next call with the same arguments continues the same operation.
    """

    def __init__(self, tool: AgentTool, *, show: Callback[PersonNeeded]) -> None:
        super().__init__(_Arguments, str, tool.name, tool.description)
        self._tool = tool
        self._show = show

    @property
    def schema(self) -> ToolSchema:
        """The declared arguments."""
        declared = self._tool.schema
        return ToolSchema(
            name=self.name,
            description=self.description,
            parameters=ParametersSchema(**declared),
            strict=False,
        )

    async def run(self, args: _Arguments, cancellation_token: CancellationToken) -> str:
        """The result for the model; the call's cancellation ends the wait."""
        return await self._tool.run(args.__pydantic_extra__ or {}, self._show)
