"""The project as a Django app: registers the system checks."""

from django.apps import AppConfig


class AgentAuthConfig(AppConfig):
    name = "agentauth"

    def ready(self) -> None:
        # Imported here, where their models are loaded. Celery is not: its processes start from
        # agentauth/celery.py, and all others would start a fifth slower for it.
        from agentauth import checks, missing_installation_steps

        _ = checks, missing_installation_steps
