"""The project as a Django app: binds the system checks."""

from django.apps import AppConfig


class AgentAuthConfig(AppConfig):
    name = "agentauth"

    def ready(self) -> None:
        # Their models are loaded by now. Celery is not imported here: whoever runs its tasks begins with agentauth/celery.py, and
        # everybody else would start a fifth slower for it.
        from agentauth import checks, deployment

        _ = checks, deployment
