"""Logos of service providers: the picture itself, and the page where an administrator signs."""

import re
import uuid
from base64 import b64encode
from typing import Any, Final

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.errors import InvalidRequestError, NotFoundError
from approvals.services import logo_approval_signing
from approvals.services.page_snapshot_token import drawn_token
from approvals.services.reauthentication import acting
from approvals.services.setup_and_sign_in import session_key_of
from approvals.views.request_helpers import (
    answer,
    human_of,
    member,
    read_posted_json,
    require_sign_in,
)
from registry.authentication import actor_of
from registry.roles import Permission
from registry.services.logo_encoding import MAX_UPLOAD, encode_logo
from registry.services.service_logos import is_ours, propose_logo, remove_logo, shown_image

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_UPLOADED: Final = "application/octet-stream"


@require_safe
@require_sign_in
def image(request: HttpRequest, digest: str) -> HttpResponse:
    """An approved logo. Its address has its digest, so a browser need never ask again."""
    found = shown_image(digest) if _DIGEST.fullmatch(digest) else None
    if found is None:
        raise NotFoundError
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    return HttpResponse(found, content_type="image/png", headers=headers)


@require_safe
@require_sign_in
def page(request: HttpRequest, service_provider_id: uuid.UUID) -> HttpResponse:
    human = human_of(request)
    provider = logo_approval_signing.find_provider(
        service_provider_id, human=human, permission=Permission.READ_REQUESTS
    )
    logos = logo_approval_signing.find_logos(provider)
    context: dict[str, Any] = {
        "provider": provider,
        "approved": logos.approved,
        "waiting": logos.waiting,
        "is_owner": Permission.OWN in human.permissions,
        "most": MAX_UPLOAD // 1024,
        "receipt": logo_approval_signing.approval_receipt(provider),
    }
    if logos.waiting and is_ours(logos.waiting):
        shown = logo_approval_signing.waiting_page(provider)
        picture = b64encode(bytes(logos.waiting.image)).decode()
        context |= {
            "lines": shown.shown["text"].splitlines(),
            "warnings": shown.shown["warnings"],
            "drawn": drawn_token(shown, now=timezone.now()),
            # Before the approval it is on this page alone.
            "picture": f"data:image/png;base64,{picture}",
        }
    return render(request, "logo.html", context)


@require_POST
@require_sign_in
def upload(request: HttpRequest, service_provider_id: uuid.UUID) -> HttpResponse:
    """Take a picture as the body, since this server reads no multipart uploads."""
    human = human_of(request)
    provider = logo_approval_signing.find_provider(service_provider_id, human=human)
    # CSRF: no form can send this media type.
    if request.content_type != _UPLOADED:
        raise InvalidRequestError(f"Send the picture as {_UPLOADED}.")
    made = encode_logo(request.read(MAX_UPLOAD + 1))
    with acting(human):
        propose_logo(
            service_provider=provider, image=made, actor=actor_of(request), now=timezone.now()
        )
    return answer(status=_("Uploaded"), next=_path(provider.pk))


@require_POST
@require_sign_in
def statement(request: HttpRequest, service_provider_id: uuid.UUID) -> HttpResponse:
    human = human_of(request)
    # Before reading the body, so that other people get the same error whatever they send.
    provider = logo_approval_signing.find_provider(service_provider_id, human=human)
    options = logo_approval_signing.begin_approval(
        provider=provider,
        human=human,
        drawn=member(read_posted_json(request), "drawn"),
        session_key=session_key_of(request),
        now=timezone.now(),
    )
    return answer(publicKey=options)


@require_POST
@require_sign_in
def decide(request: HttpRequest, service_provider_id: uuid.UUID) -> HttpResponse:
    human = human_of(request)
    provider = logo_approval_signing.find_provider(service_provider_id, human=human)
    logo_approval_signing.finish_approval(
        provider=provider,
        human=human,
        session_key=session_key_of(request),
        credential=read_posted_json(request).get("credential"),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return answer(status=_("Approved"), next=_path(provider.pk))


@require_POST
@require_sign_in
def remove(request: HttpRequest, service_provider_id: uuid.UUID) -> HttpResponse:
    """Remove the logo with the posted digest: one that waits is refused by that."""
    human = human_of(request)
    provider = logo_approval_signing.find_provider(service_provider_id, human=human)
    with acting(human):
        remove_logo(
            service_provider=provider,
            digest=request.POST.get("logo", ""),
            actor=actor_of(request),
            now=timezone.now(),
        )
    messages.success(request, _("Logo removed"))
    return HttpResponseRedirect(_path(provider.pk))


@require_safe
@require_sign_in
def receipt(request: HttpRequest, service_provider_id: uuid.UUID) -> HttpResponse:
    """The signed receipt of the latest approval."""
    provider = logo_approval_signing.find_provider(
        service_provider_id, human=human_of(request), permission=Permission.READ_REQUESTS
    )
    found = logo_approval_signing.approval_receipt(provider)
    if found is None:
        raise NotFoundError("There is no receipt for a logo of this service.")
    headers = {"Content-Disposition": f"attachment; filename=logo-{provider.pk}.jws"}
    return HttpResponse(found.compact, content_type="application/jose", headers=headers)


def _path(provider_id: uuid.UUID) -> str:
    return f"/logos/{provider_id}/"
