"""Identifiers: the layout of RFC 9562, and only its lower-case text."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentauth.protocol.errors import EncodingError
from agentauth.protocol.identifiers import is_id, parse_id, uuid7_text


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_the_layout_is_that_of_the_standard(ms: int, entropy: bytes) -> None:
    made = uuid.UUID(uuid7_text(ms, entropy))
    assert (made.version, made.variant, made.int >> 80) == (7, uuid.RFC_4122, ms)
    assert is_id(str(made))


def test_the_example_of_rfc_9562_comes_out() -> None:
    entropy = ((0xCC3 << 62) | 0x18C4DC0C0C07398F).to_bytes(10, "big")
    assert uuid7_text(0x017F22E279B0, entropy) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@pytest.mark.parametrize(
    ("ms", "entropy"), [(-1, bytes(10)), (2**48, bytes(10)), (0, bytes(9)), (0, bytes(11))]
)
def test_what_does_not_fit_is_refused(ms: int, entropy: bytes) -> None:
    with pytest.raises(EncodingError):
        uuid7_text(ms, entropy)


@pytest.mark.parametrize(
    "text",
    [
        "017F22E2-79B0-7CC3-98C4-DC0C0C07398F",
        "{017f22e2-79b0-7cc3-98c4-dc0c0c07398f}",
        "urn:uuid:017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
        "017f22e279b07cc398c4dc0c0c07398f",
        "017f22e2-79b0-4cc3-98c4-dc0c0c07398f",
        "017f22e2-79b0-7cc3-c8c4-dc0c0c07398f",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398f\n",
        "",
        None,
        7,
    ],
)
def test_only_one_text_names_an_id(text: object) -> None:
    assert not is_id(text)


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_an_identifier_is_read_in_its_one_spelling(ms: int, entropy: bytes) -> None:
    made = uuid.UUID(uuid7_text(ms, entropy))
    assert parse_id(str(made)) == made
    for other in (f"{{{made}}}", made.hex, f"urn:uuid:{made}", f" {made}"):
        with pytest.raises(ValueError, match="not a lower-case UUIDv7"):
            parse_id(other)
