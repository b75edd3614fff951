"""Event kinds are read by auditors and programs: they follow the log's words, not our modules."""

import pytest

from audit import kinds

KINDS = sorted(
    value for name, value in vars(kinds).items() if name.isupper() and isinstance(value, str)
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_an_app_a_subject_and_what_happened(kind: str) -> None:
    app, subject, happened = kind.split(".")
    assert app in {"approvals", "audit", "kms", "registry", "verifier"}
    assert all(word.islower() for word in (subject, happened))


def test_no_kind_was_renamed_with_a_module() -> None:
    assert len(KINDS) == len(set(KINDS))
    assert kinds.REFUSALS_SUPPRESSED == "audit.refusals.suppressed"
