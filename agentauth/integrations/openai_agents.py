"""A tool of the OpenAI Agents SDK from an `AgentTool`; comes with the extra `openai-agents`."""

from typing import Any

from agentauth.sdk.decision_polling import Callback, tell

from .agent_tool import AgentTool, PersonNeeded, operation_key

try:
    from agents import FunctionTool, RunContextWrapper
    from agents.tool_context import ToolContext
except ImportError:
    raise ImportError(
        "For the OpenAI Agents SDK, install the extra: pip install 'agentauth-sdk[openai-agents]'"
    ) from None


def openai_tool(
    tool: AgentTool, *, show: Callback[PersonNeeded], pause: bool = False
) -> FunctionTool:
    """A tool for `Agent(tools=[…])`. `show` gets the link when a person must decide.

    The tool then waits for the decision. With `pause`, a run whose grant is not approved yet ends
    with an interruption instead, after `show` got the link: once the person has decided, approve
    the interruption on the run's state and run that state. The registry decides, not that approval.

    The operation's key is made of the id of the tool call, so that a state that is run twice acts
    once: a model must use a new id for each call, as OpenAI's do.
    """

    async def invoke(context: ToolContext[Any], arguments: str) -> str:
        key = operation_key("openai-agents", context.tool_call_id, tool.name, arguments)
        return await tool.run_json(arguments, show, key=key)

    async def needs_approval(
        _context: RunContextWrapper[Any], _arguments: dict[str, Any], _call_id: str
    ) -> bool:
        needed = await tool.needs_person()
        if needed is not None:
            await tell(show, needed)
        return needed is not None

    return FunctionTool(
        name=tool.name,
        description=tool.description,
        params_json_schema=dict(tool.schema),
        on_invoke_tool=invoke,
        # Strict mode rewrites schemas and has no optional arguments; `AgentTool` checks them.
        strict_json_schema=False,
        needs_approval=needs_approval if pause else False,
    )
