"""The Celery app: periodic work in production. The embedded default runs `manage.py jobs` instead."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")

app = Celery("agentauth")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
