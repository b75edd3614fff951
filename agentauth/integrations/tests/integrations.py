"""Every integration, each with its site of the conformance suite."""

from agentauth.integrations.tests import (
    asgi_site,
    django_site,
    drf_site,
    fastapi_site,
    flask_site,
    starlette_site,
)
from agentauth.integrations.tests.conformance import Integration

INTEGRATIONS: tuple[Integration, ...] = (
    *django_site.INTEGRATIONS,
    *drf_site.INTEGRATIONS,
    *asgi_site.INTEGRATIONS,
    *starlette_site.INTEGRATIONS,
    *fastapi_site.INTEGRATIONS,
    *flask_site.INTEGRATIONS,
)
