"""A service provider's API in one file: calendar, files, payments, all behind the verifier.

    gunicorn "examples.demo.service_provider:application()"

Its credentials are read from the file that `manage.py load_demo` wrote (DEMO_CREDENTIALS names it).
"""

import json
import os
import secrets
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from agentauth.integrations.django import decision, protected, unprotected
from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import InvalidRequestError
from agentauth.sdk import Action, Money

CALENDAR = {"work": ["09:00 stand-up", "14:00 review"], "home": ["19:00 dinner"]}
PAYMENTS: list[dict[str, Any]] = []
_paying = threading.Lock()


def read_calendar(_request: HttpRequest, name: str) -> Action:
    """What a GET of this view is, in the verifier's words."""
    return Action("read", f"calendar/{name}")


def read_file(_request: HttpRequest, name: str) -> Action:
    return Action("read", f"files/{name}")


def make_payment(request: HttpRequest) -> Action:
    """The amount comes from the request itself, so that the verifier judges what is really paid."""
    order = _order(request)
    return Action("transact", "payments", Money.parse(order["amount"]), {"payee": order["payee"]})


@protected(read_calendar)
def calendar(request: HttpRequest, name: str) -> JsonResponse:
    return JsonResponse(
        {"calendar": name, "events": CALENDAR.get(name, []), "for": decision(request).subject}
    )


@protected(read_file)
def files(_request: HttpRequest, name: str) -> JsonResponse:
    return JsonResponse({"file": name, "content": "Nothing to see here."})


# The decorator answers 409 to an Idempotency-Key that was allowed before: nothing is paid twice.
@protected(make_payment)
def payments(request: HttpRequest) -> JsonResponse:
    order = _order(request)
    with _paying:
        PAYMENTS.append({"number": len(PAYMENTS) + 1, "by": decision(request).agent_id, **order})
        paid = PAYMENTS[-1]
    return JsonResponse({"paid": paid}, status=201)


@unprotected
def front(_request: HttpRequest) -> JsonResponse:
    return JsonResponse(
        {"service": "AgentAuth demo service", "try": ["/calendar/work", "/files/x", "/payments"]}
    )


def _order(request: HttpRequest) -> dict[str, Any]:
    order = read_object(request.body)
    if order.keys() != {"amount", "payee"} or not isinstance(order["payee"], str):
        raise InvalidRequestError("Send an amount and a payee.")
    return order


urlpatterns = [
    path("", front),
    path("calendar/<path:name>", calendar),
    path("files/<path:name>", files),
    path("payments", payments),
]


def application() -> Any:
    """The WSGI application, configured from the credentials file."""
    credentials = json.loads(Path(os.environ["DEMO_CREDENTIALS"]).read_text())
    settings.configure(
        ALLOWED_HOSTS=[urlsplit(credentials["audience"]).hostname],
        SECRET_KEY=secrets.token_urlsafe(50),
        ROOT_URLCONF=__name__,
        # Refuses a view without a decorator instead of leaving it open.
        MIDDLEWARE=["agentauth.integrations.django.AgentAuthMiddleware"],
        APPEND_SLASH=False,
        AGENTAUTH={
            "REGISTRY_URL": credentials["registry_url"],
            "CLIENT_ID": credentials["client_id"],
            "CLIENT_SECRET": credentials["client_secret"],
            "AUDIENCE": credentials["audience"],
        },
    )
    django.setup()
    return get_wsgi_application()
