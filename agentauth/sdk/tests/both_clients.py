"""The two clients of verify under one interface, so that each rule is tested on both."""

import asyncio
from typing import Any, Self

import pytest

from agentauth.sdk.async_verifier import AsyncVerifierClient
from agentauth.sdk.verifier_core import Allowed, UnknownOutcomeError


class Blocking:
    """`AsyncVerifierClient`, each call in an event loop of its own."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self._client = AsyncVerifierClient(*given, **options)

    def __repr__(self) -> str:
        return repr(self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def verify(self, **question: Any) -> Allowed:
        allowed: Allowed = self._run("verify", **question)
        return allowed

    def ask_again(self, error: UnknownOutcomeError) -> Allowed:
        allowed: Allowed = self._run("ask_again", error)
        return allowed

    def verify_batch(self, questions: Any) -> list[Any]:
        results: list[Any] = self._run("verify_batch", questions)
        return results

    def close(self) -> None:
        asyncio.run(self._client.close())

    def _run(self, name: str, *given: Any, **named: Any) -> Any:
        async def run() -> Any:
            try:
                return await getattr(self._client, name)(*given, **named)
            finally:
                # Its connections end with this loop.
                await self._client.close()

        return asyncio.run(run())


def on_both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the client that a parameter names in the place of the module's `VerifierClient`."""
    if request.param == "async":
        monkeypatch.setattr(request.module, "VerifierClient", Blocking)


both = pytest.fixture(params=["sync", "async"])(on_both)
