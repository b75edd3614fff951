"""AgentAuth: capability-based authentication for AI agents. Imports nothing until asked."""
