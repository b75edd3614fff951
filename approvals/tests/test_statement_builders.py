"""What every signed statement says about the time it was made."""

from datetime import datetime

import pytest
from django.utils import translation

from approvals.services.statement_builders import signing
from registry.models import Human


@pytest.mark.parametrize(("active", "said"), [("de", "de"), (None, "en")])
def test_a_statement_names_the_language_of_its_text(
    now: datetime, active: str | None, said: str
) -> None:
    with translation.override(active):
        assert signing(None, Human(), "x", now).language == said
