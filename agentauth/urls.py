"""Every URL of the project, by app."""

from django.urls import include, path

<<<<<<< HEAD
from agentauth import health
from agentauth.openapi.views import SchemaView
=======
from agentauth import health, metrics
>>>>>>> 8521405 (Rate limits per address, agent, service provider and human; one request line; metrics; truthful readiness; the server's limits in one file)
from approvals.admin_site import site

handler400 = "agentauth.http_errors.bad_request"
handler403 = "agentauth.http_errors.permission_denied"
handler404 = "agentauth.http_errors.not_found"
handler500 = "agentauth.http_errors.server_error"

urlpatterns = [
    path("health/live", health.live),
    path("health/ready", health.ready),
    path("health/startup", health.ready),
<<<<<<< HEAD
    path("v1/schema/", SchemaView.as_view()),
=======
    path("metrics", metrics.page),
>>>>>>> 8521405 (Rate limits per address, agent, service provider and human; one request line; metrics; truthful readiness; the server's limits in one file)
    path("admin/", site.urls),
    path("", include("kms.urls")),
    path("", include("audit.urls")),
    path("", include("registry.urls")),
    path("", include("verifier.urls")),
    path("", include("approvals.urls")),
]
