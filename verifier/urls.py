"""Routes of the verifier's API."""

from django.urls import path

from verifier.api import (
    ConfirmationsView,
    ConfirmationView,
    IntrospectView,
    VerifyBatchView,
    VerifyView,
)

urlpatterns = [
    path("v1/verify", VerifyView.as_view()),
    path("v1/verify/batch", VerifyBatchView.as_view()),
    path("v1/introspect", IntrospectView.as_view()),
    path("v1/confirmations", ConfirmationsView.as_view()),
    path("v1/confirmations/<str:confirmation_id>", ConfirmationView.as_view()),
]
