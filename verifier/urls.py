"""Routes of the verifier's API."""

from django.urls import path

from verifier.api import IntrospectView, VerifyBatchView, VerifyView
from verifier.confirmations_api import ConfirmationsView, ConfirmationView
from verifier.endpoint_paths import BATCH, INTROSPECT, VERIFY

urlpatterns = [
    path(VERIFY[1:], VerifyView.as_view()),
    path(BATCH[1:], VerifyBatchView.as_view()),
    path(INTROSPECT[1:], IntrospectView.as_view()),
    path("v1/confirmations", ConfirmationsView.as_view()),
    path("v1/confirmations/<str:confirmation_id>", ConfirmationView.as_view()),
]
