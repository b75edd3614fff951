"""URLs of the kms app."""

from django.urls import path

from kms.jwks_view import JwksView

urlpatterns = [path(".well-known/jwks.json", JwksView.as_view(), name="jwks")]
