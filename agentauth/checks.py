"""System checks with ids: unsafe production settings stop start-up, each with one clear line."""

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import Error, register

MIN_SECRET_CHARACTERS = 50


@register()
def production_is_safe(**_kwargs: Any) -> list[Error]:
    """Development is exactly a localhost PUBLIC_URL; everything else must hold all of this."""
    if settings.DEVELOPMENT:
        return []
    rules = [
        ("E003", settings.PUBLIC_URL.startswith("https://"), "PUBLIC_URL must be https in production."),
        (
            "E004",
            len(settings.SECRET_KEY) >= MIN_SECRET_CHARACTERS and len(set(settings.SECRET_KEY)) > 4,  # noqa: PLR2004 — a repeated letter is no secret
            f"SECRET_KEY must have at least {MIN_SECRET_CHARACTERS} random characters.",
        ),
        (
            "E005",
            "sqlite" not in settings.DATABASES["default"]["ENGINE"],
            "Production needs PostgreSQL: set DATABASE_URL.",
        ),
        (
            "E006",
            _roles_differ(),
            "DATABASE_OWNER_URL must name another role than DATABASE_URL: the serving role may not change the log.",
        ),
        (
            "E007",
            not settings.DEBUG and "*" not in settings.ALLOWED_HOSTS,
            "DEBUG must be off and hosts named.",
        ),
        (
            "E008",
            settings.KEY_BACKEND != "file",
            "Keys in files are for development: no production key backend is set.",
        ),
    ]
    return [Error(message, id=f"agentauth.{number}") for number, holds, message in rules if not holds]


def _roles_differ() -> bool:
    owner, serving = urlsplit(settings.DATABASE_OWNER_URL), urlsplit(settings.DATABASE_URL)
    return bool(owner.username) and owner.username != serving.username
