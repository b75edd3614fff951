"""Every URL of the project, by app."""

from django.urls import include, path

import registry.urls
import verifier.urls
from agentauth import health, operations
from agentauth.openapi.views import SchemaView, docs
from approvals.admin_site import site

handler400 = "agentauth.http_errors.bad_request"
handler403 = "agentauth.http_errors.permission_denied"
handler404 = "agentauth.http_errors.not_found"
handler500 = "agentauth.http_errors.server_error"

urlpatterns = [
    # Looked through in this order: what is asked most comes first.
    *registry.urls.urlpatterns,
    *verifier.urls.urlpatterns,
    path("health/live", health.live),
    path("health/ready", health.ready),
    path("health/startup", health.ready),
    path("v1/schema/", SchemaView.as_view()),
    path("docs/", docs),
    path("metrics", operations.page),
    path("admin/", site.urls),
    path("", include("kms.urls")),
    path("", include("audit.urls")),
    path("", include("approvals.urls")),
]
