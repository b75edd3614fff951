"""The kms app."""

from django.apps import AppConfig


class KmsConfig(AppConfig):
    name = "kms"
    verbose_name = "Signing keys"
