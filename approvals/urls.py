"""Routes of the pages, and of the receipt."""

from django.urls import path

from approvals.api import ReceiptView
from approvals.views import agents, approval, claim, confirmation, entry, lists, presence, settings

urlpatterns = [
    path("", entry.front),
    path("sign-in/", entry.sign_in),
    path("sign-in/options", entry.sign_in_options),
    path("sign-in/finish", entry.sign_in_finish),
    path("sign-out/", entry.sign_out),
    path("setup/<str:code>/", entry.setup),
    path("setup/<str:code>/options", entry.setup_options),
    path("setup/<str:code>/finish", entry.setup_finish),
    path("approvals/", lists.inbox),
    path("approvals/<uuid:grant_id>/", approval.page),
    path("approvals/<uuid:grant_id>/review", approval.review),
    path("approvals/<uuid:grant_id>/second-step", approval.second_step),
    path("approvals/<uuid:grant_id>/statement", approval.statement),
    path("approvals/<uuid:grant_id>/decide", approval.decide),
    path("approvals/<uuid:grant_id>/receipt/", approval.receipt),
    path("claim/<str:secret>/", claim.page),
    path("claim/<str:secret>/statement", claim.statement),
    path("claim/<str:secret>/decide", claim.decide),
    path("confirmations/<uuid:confirmation_id>/", confirmation.page),
    path("confirmations/<uuid:confirmation_id>/statement", confirmation.statement),
    path("confirmations/<uuid:confirmation_id>/decide", confirmation.decide),
    path("agents/", agents.index),
    path("agents/<uuid:agent_id>/", agents.page),
    path("agents/<uuid:agent_id>/suspend", agents.suspend),
    path("agents/<uuid:agent_id>/resume", agents.resume),
    path("agents/<uuid:agent_id>/revoke", agents.revoke),
    path("agents/<uuid:agent_id>/grants/<uuid:grant_id>/revoke", agents.revoke_grant),
    path("activity/", lists.activity),
    path("settings/", settings.page),
    path("settings/passkeys/options", settings.passkey_options),
    path("settings/passkeys/finish", settings.passkey_finish),
    path("settings/passkeys/<uuid:passkey_id>/remove", settings.passkey_remove),
    path("settings/enrolment-codes", settings.enrolment_code),
    path("settings/time-zone", settings.time_zone),
    path("settings/sessions/end", settings.sessions_end),
    path("presence/options", presence.options),
    path("presence/begin", presence.begin),
    path("presence/renew", presence.renew),
    path("presence/end", presence.end),
    path("v1/grants/<str:grant_id>/receipt", ReceiptView.as_view()),
]
