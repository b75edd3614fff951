"""The conformance suite's sites in Flask and Django as gunicorn imports them (test_moved_paths.py).

The environment says where the registry is, and `PREFIX` under which path the site is configured.
"""

import os
from pathlib import Path
from typing import Any

from agentauth.integrations.provider_settings import Provider

PREFIX = os.environ.get("PREFIX", "")


def flask() -> Any:
    from agentauth.integrations.flask import protect
    from agentauth.integrations.tests import flask_site

    app = flask_site.application()
    app.config["APPLICATION_ROOT"] = PREFIX or "/"
    protect(app, Provider.from_environment())
    return app


def django() -> Any:
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application

    provider = Provider.from_environment()
    settings.configure(
        ALLOWED_HOSTS=["api.sp.example"],
        ROOT_URLCONF="agentauth.integrations.tests.django_site",
        MIDDLEWARE=["agentauth.integrations.django.AgentAuthMiddleware"],
        FORCE_SCRIPT_NAME=PREFIX or None,
        AGENTAUTH={
            "REGISTRY_URL": provider.registry_url,
            "CLIENT_ID": provider.client_id,
            "CLIENT_SECRET": provider.client_secret,
            "AUDIENCE": provider.audience,
        },
    )
    django.setup()
    return get_wsgi_application()


def forward_auth() -> Any:
    from agentauth.integrations.forward_auth import Configuration, ForwardAuth

    text = Path(os.environ["FILE"]).read_text()
    return ForwardAuth(Configuration.read(text), Provider.from_environment().verifier())
