"""Programs that use AgentAuth as a stranger would: only the SDK, over HTTP."""
