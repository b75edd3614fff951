"""The choice of language in the footer of every page."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.views.decorators.http import require_POST

from approvals.views.request_helpers import safe_next
from registry.authentication import actor_of
from registry.models import Human
from registry.services.humans import change_language, check_language


@require_POST
def choose(request: HttpRequest) -> HttpResponse:
    """Store the language in a cookie and, if the person is signed in, in their account."""
    language = request.POST.get("language", "")
    check_language(language)
    if isinstance(request.user, Human) and request.user.language != language:
        change_language(
            human=request.user, language=language, actor=actor_of(request), now=timezone.now()
        )
    response = HttpResponseRedirect(safe_next(request))
    response.set_cookie(
        settings.LANGUAGE_COOKIE_NAME,
        language,
        max_age=settings.LANGUAGE_COOKIE_AGE,
        secure=settings.LANGUAGE_COOKIE_SECURE,
        httponly=settings.LANGUAGE_COOKIE_HTTPONLY,
        # Not Strict like the others: a page opened from a mail must be in the visitor's language.
        samesite="Lax",
    )
    return response
