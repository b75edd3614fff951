"""Routes of the verifier's API."""

from django.urls import path

from verifier.api import ConfirmationView

urlpatterns = [
    path("v1/confirmations/<str:confirmation_id>", ConfirmationView.as_view()),
]
