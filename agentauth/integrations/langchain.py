"""A tool of LangChain and LangGraph from an `AgentTool`; comes with the extra `langchain`.

In a LangGraph graph with a checkpointer, the graph is interrupted where a person must decide: the
interrupt's value has the link. Resume it with `Command(resume=True)` once they did, or with
`Command(resume=False)` to give up.
"""

import asyncio
from dataclasses import asdict
from typing import Any

from agentauth.protocol.errors import InvalidRequestError
from agentauth.sdk.decision_polling import Callback

from .agent_tool import AgentTool, Parked, PersonNeeded, declined, operation_key, park
from .requirement import ConfigurationError

try:
    from langchain_core.runnables import RunnableConfig
    from langchain_core.runnables.config import var_child_runnable_config
    from langchain_core.tools import BaseTool
    from langgraph.types import interrupt
    from pydantic import PrivateAttr
except ImportError:
    raise ImportError(
        "For LangChain, install the extra: pip install 'agentauth-sdk[langchain]'"
    ) from None


def langchain_tool(tool: AgentTool, *, show: Callback[PersonNeeded] | None = None) -> BaseTool:
    """A LangChain tool. Without `show`, it interrupts its LangGraph graph for a person's decision.

    With `show`, which gets the link, the tool waits for the decision instead, in any chain or
    agent. `ainvoke` may share the event loop with the agent; `invoke` must not run inside one.
    """
    made = _ServiceTool(name=tool.name, description=tool.description, args_schema=dict(tool.schema))
    made.bind(tool, show)
    return made


class _ServiceTool(BaseTool):
    _tool: AgentTool = PrivateAttr()
    _show: Callback[PersonNeeded] | None = PrivateAttr(default=None)

    def bind(self, tool: AgentTool, show: Callback[PersonNeeded] | None) -> None:
        self._tool, self._show = tool, show

    def _to_args_and_kwargs(
        self, tool_input: str | dict[str, Any], tool_call_id: str | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Positional: an argument of the model may have any name.
        return (self._parse_input(tool_input, tool_call_id), tool_call_id), {}

    def _run(self, arguments: dict[str, Any], call_id: str | None) -> str:
        if self._show is not None:
            return asyncio.run(self._tool.run(arguments, self._show))
        try:
            key = self._key(arguments, call_id)
            return asyncio.run(self._tool.run(arguments, park, key=key))
        except Parked as parked:
            needed = parked.needed
        return self._interrupt(needed)

    async def _arun(self, arguments: dict[str, Any], call_id: str | None) -> str:
        if self._show is not None:
            return await self._tool.run(arguments, self._show)
        try:
            key = self._key(arguments, call_id)
            return await self._tool.run(arguments, park, key=key)
        except Parked as parked:
            needed = parked.needed
        # Outside `except`: the interrupt is itself an exception.
        return self._interrupt(needed)

    def _interrupt(self, needed: PersonNeeded) -> str:
        """Interrupt the graph, which runs this tool again from its start once it is resumed.

        Then `interrupt` returns the value of each earlier resumption, in order, before it
        interrupts again. So the registry has been asked once, by the run just now: polls in quick
        succession would get `slow_down`.
        """
        while interrupt(self._value(needed)) is not False:
            pass
        return declined()

    def _key(self, arguments: dict[str, Any], call_id: str | None) -> str | None:
        """The same for each run of one call, also in another process.

        The namespace of the checkpoint names the graph's task: a model may use the id of a call
        again in a later step.
        """
        config: RunnableConfig = var_child_runnable_config.get() or {}
        place = config.get("configurable", {})
        if "thread_id" not in place or "checkpoint_ns" not in place:
            raise ConfigurationError(
                f"The tool {self.name!r} has to interrupt a graph: run it in a LangGraph graph with"
                " a checkpointer and a thread_id, or give `show` to langchain_tool."
            )
        thread, task = str(place["thread_id"]), str(place["checkpoint_ns"])
        try:
            return operation_key("langgraph", thread, task, call_id, self.name, arguments)
        except InvalidRequestError:
            # `run` refuses the same arguments.
            return None

    def _value(self, needed: PersonNeeded) -> dict[str, Any]:
        return {"type": "agentauth", "tool": self.name, **asdict(needed)}
