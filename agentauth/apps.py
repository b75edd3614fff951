"""The project as a Django app: binds Celery and the system checks."""

from django.apps import AppConfig


class AgentAuthConfig(AppConfig):
    name = "agentauth"

    def ready(self) -> None:
        # Shared tasks bind to the app that exists when they are imported.
        from agentauth import celery, checks

        _ = (celery, checks)
