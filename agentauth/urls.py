"""Every URL of the project, by app."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponsePermanentRedirect
from django.http.response import HttpResponseBase
from django.urls import include, path
from django.views.decorators.http import require_safe

import registry.urls
import verifier.urls
from agentauth.observability import health, metrics_page
from agentauth.openapi.views import SchemaView, docs
from approvals.admin_site import site


def without_slash(address: str) -> Callable[[HttpRequest], HttpResponseBase]:
    """301 to our `address`, for a person who typed it without its slash.

    GET and HEAD only, and the query is dropped. No APPEND_SLASH: every other path is exactly as it
    is printed (docs/protocol.md section 0).
    """

    @require_safe
    def redirect(request: HttpRequest) -> HttpResponseBase:
        return HttpResponsePermanentRedirect(address)

    return redirect


handler400 = "agentauth.http_errors.bad_request"
handler403 = "agentauth.http_errors.permission_denied"
handler404 = "agentauth.http_errors.not_found"
handler500 = "agentauth.http_errors.server_error"

urlpatterns = [
    # Matched in this order: the most frequent come first.
    *registry.urls.urlpatterns,
    *verifier.urls.urlpatterns,
    path("health/live", health.live),
    path("health/ready", health.ready),
    path("health/startup", health.ready),
    path("v1/schema/", SchemaView.as_view()),
    path("docs/", docs),
    path("docs", without_slash("/docs/")),
    path("metrics", metrics_page.page),
    path("admin/", site.urls),
    path("admin", without_slash("/admin/")),
    path("", include("kms.urls")),
    path("", include("audit.urls")),
    path("", include("approvals.urls")),
]
