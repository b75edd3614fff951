"""The choice of language at the foot of every page."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.views.decorators.http import require_POST

from approvals.views.page_requests import safe_next
from registry.authentication import actor_of
from registry.models import Human
from registry.services.humans import change_language, check_language


@require_POST
def choose(request: HttpRequest) -> HttpResponse:
    """Keep the language in the browser, and in the account of a person who is signed in."""
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
        # Not Strict as the others: a link in a mail leads to a page in the visitor's language.
        samesite="Lax",
    )
    return response
