"""Programs that use AgentAuth as an outside developer would: only the SDK, over HTTP."""
