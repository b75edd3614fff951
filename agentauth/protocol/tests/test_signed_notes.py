"""Signed notes: the published examples to the byte, round trips, and each note that the
standard refuses.
"""

import base64
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentauth.protocol.encoding import b64_encode, b64u_encode
from agentauth.protocol.errors import (
    InvalidKeyError,
    InvalidSignatureError,
    NoteError,
    UntrustedNoteError,
)
from agentauth.protocol.keys import LocalSigner, PrivateKey, PublicKey, parse_jwk
from agentauth.protocol.signed_notes import (
    Note,
    Signature,
    SignatureType,
    VerifiedSignature,
    Verifier,
    cosign_text,
    format_note,
    parse_note,
    parse_signatures,
    parse_vkey,
    sign_text,
    verifier_key,
    verify_signatures,
)

# From the documentation of golang.org/x/mod/sumdb/note, where the format comes from.
PUBLISHED = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
# The example of c2sp.org/signed-note.
EXAMPLE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE_TEXT = "This is an example message.\n"
EXAMPLE = (
    EXAMPLE_TEXT + "\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
# Its example of a text with an empty line, whose key it does not name.
POEM = """Ognuno sta solo sul cuor della terra
trafitto da un raggio di sole:

ed è subito sera.

— quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=
"""  # noqa: E501
KEY = LocalSigner(PrivateKey.generate())
OTHER = LocalSigner(PrivateKey.generate())
TEXT = "log.example\n3\nroot\n"
SIGNATURE = sign_text(TEXT, name="log.example", signer=KEY)
LINE = SIGNATURE.line
MAX_NOTE_BYTES, MAX_SIGNATURES, MAX_TIMESTAMP = 131_072, 16, 2**63 - 1
GOOD = f"{TEXT}\n{LINE}"
TRUSTED = Verifier("log.example", KEY.public)
PUBLISHED_KEY = bytes.fromhex("1a5cd907143c384c41e830c5bce12aa8817ec5649aaabf2c31388b35b2d744d6")


def test_the_published_verifier_key_comes_out_to_the_byte() -> None:
    key = parse_jwk({"kty": "OKP", "crv": "Ed25519", "x": b64u_encode(PUBLISHED_KEY)})
    assert verifier_key("PeterNeumann", key) == PUBLISHED


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a+b", "a\n", "a\u00a0b", "a\u2028", "a\u3000", "a\x85b", "a\x1b", "a\0", "\ud800"],
)
def test_a_name_a_note_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        verifier_key(name, PrivateKey.generate().public)


def test_only_ed25519_keys_sign_notes() -> None:
    with pytest.raises(InvalidKeyError):
        verifier_key("a", PrivateKey.generate("ES256").public)


def test_the_published_note_verifies_by_the_published_key() -> None:
    verifier = parse_vkey(EXAMPLE_KEY)
    assert verifier.vkey == EXAMPLE_KEY
    note = parse_note(EXAMPLE.encode())
    assert note.text == EXAMPLE_TEXT
    [verified] = verify_signatures(note, [verifier])
    assert verified == VerifiedSignature(verifier, note.signatures[0], None)
    assert format_note(note.text, note.signatures) == EXAMPLE


def test_a_text_may_hold_empty_lines_and_the_last_one_divides() -> None:
    note = parse_note(POEM.encode())
    assert note.text == POEM.rpartition("\n\n")[0] + "\n"
    assert "\n\n" in note.text
    assert [each.name for each in note.signatures] == ["quasimodo.example/salvatore"]
    assert format_note(note.text, note.signatures) == POEM
    assert parse_note(f"a\n\n\n{LINE}").text == "a\n\n"


def test_AU_17_a_note_has_at_most_sixteen_signatures() -> None:
    lines = [
        sign_text(TEXT, name=f"key{number}", signer=KEY).line
        for number in range(MAX_SIGNATURES + 1)
    ]
    assert len(parse_note(TEXT + "\n" + "".join(lines[:-1])).signatures) == 16
    with pytest.raises(NoteError, match="at most 16"):
        parse_note(TEXT + "\n" + "".join(lines))


def resigned(change: Callable[[bytes], bytes]) -> str:
    """A signature line whose base64 was changed."""
    start, _, encoded = LINE.removesuffix("\n").rpartition(" ")
    return f"{TEXT}\n{start} {change(encoded.encode()).decode()}\n"


BAD_FORMS = {
    "signatures alone": LINE + LINE,
    "nothing": "",
    "no text": f"\n{LINE}",
    "no signature": f"{TEXT}\n",
    "no empty line": TEXT + LINE,
    "a text that does not end": f"a{LINE}",
    "a last line that does not end": GOOD.removesuffix("\n"),
    "an empty line after the signatures": GOOD + "\n",
    "CRLF everywhere": GOOD.replace("\n", "\r\n"),
    "CRLF in the text": GOOD.replace("3\n", "3\r\n"),
    "CRLF after the signature": GOOD.removesuffix("\n") + "\r\n",
    "a NUL": GOOD.replace("root", "ro\0t"),
    "a tab": GOOD.replace("root", "ro\tt"),
    "an escape": GOOD.replace("root", "ro\x1b[31mt"),
    "a unit separator": GOOD.replace("root", "ro\x1ft"),
    "half a character": GOOD.replace("root", "\ud800"),
    "a hyphen for the dash": GOOD.replace("—", "-"),
    "an en dash": GOOD.replace("—", "–"),
    "no dash": GOOD.replace("— ", ""),
    "a dash and no space": GOOD.replace("— ", "—"),
    "a space before the dash": GOOD.replace("— ", " — "),
    "two spaces after the dash": GOOD.replace("— ", "—  "),
    "two spaces before the signature": GOOD.replace("log.example ", "log.example  "),
    "a space behind": GOOD.removesuffix("\n") + " \n",
    "a third word": GOOD.removesuffix("\n") + " x\n",
    "no name": GOOD.replace("— log.example ", "— "),
    "no signature behind the name": f"{TEXT}\n— log.example\n",
    "an empty signature": f"{TEXT}\n— log.example \n",
    "a plus sign in a name": GOOD.replace("— log.example", "— log+example"),
    "a wide space in a name": GOOD.replace("— log.example", "— log\u2003example"),
    "a key id alone": f"{TEXT}\n— log.example {base64.b64encode(SIGNATURE.key_id).decode()}\n",
    "base64 without padding": resigned(lambda encoded: encoded.rstrip(b"=")),
    "base64 with more padding": resigned(lambda encoded: encoded + b"="),
    "base64 of URLs": (
        f"{TEXT}\n— log.example {base64.urlsafe_b64encode(b'????' + bytes([255]) * 64).decode()}\n"
    ),
    "base64 with bits behind": f"{TEXT}\n— log.example AAAAAAB=\n",
    "base64 with a letter of another alphabet": resigned(
        lambda encoded: encoded[:-2] + "é".encode()
    ),
    "a bad line after a good one": GOOD + "— log.example x\n",
}


@pytest.mark.parametrize("note", BAD_FORMS.values(), ids=BAD_FORMS)
def test_AU_17_a_note_in_another_form_is_refused(note: str) -> None:
    with pytest.raises(NoteError) as refused:
        parse_note(note)
    assert refused.value.code == "invalid_note"


@pytest.mark.parametrize(
    "data", [GOOD.encode().replace(b"root", b"\xff"), GOOD.encode("utf-16"), b"\xed\xa0\x80\n"]
)
def test_AU_17_a_note_that_is_not_utf_8_is_refused(data: bytes) -> None:
    with pytest.raises(NoteError):
        parse_note(data)


def test_a_note_has_a_largest_length() -> None:
    filler = "x" * (MAX_NOTE_BYTES - len(GOOD.encode()))
    assert parse_note(filler + GOOD).text == filler + TEXT
    with pytest.raises(NoteError, match="too long"):
        parse_note("x" + filler + GOOD)


def test_AU_17_signatures_of_unknown_keys_are_ignored() -> None:
    stranger = sign_text(TEXT, name="stranger", signer=OTHER)
    rubbish = Signature("nobody", b"1234", b"?")
    note = parse_note(format_note(TEXT, [rubbish, stranger, SIGNATURE]))
    assert [each.signature for each in verify_signatures(note, [TRUSTED])] == [SIGNATURE]
    assert verify_signatures(note, []) == ()
    # A key is named by name and key id together, not by one of them.
    for name, key_id in [("log.example", stranger.key_id), ("stranger", SIGNATURE.key_id)]:
        assert verify_signatures(Note(TEXT, (Signature(name, key_id, b"?"),)), [TRUSTED]) == ()


def test_AU_17_a_known_key_with_a_bad_signature_spoils_the_note() -> None:
    bad = Signature(
        SIGNATURE.name, SIGNATURE.key_id, SIGNATURE.value[:-1] + bytes([SIGNATURE.value[-1] ^ 1])
    )
    short = Signature(SIGNATURE.name, SIGNATURE.key_id, SIGNATURE.value[:-1])
    long = Signature(SIGNATURE.name, SIGNATURE.key_id, SIGNATURE.value + b"\0")
    for each in (bad, short, long):
        for signatures in ([each], [SIGNATURE, each], [each, SIGNATURE]):
            with pytest.raises(UntrustedNoteError) as refused:
                verify_signatures(parse_note(format_note(TEXT, signatures)), [TRUSTED])
            assert refused.value.code == "untrusted_note"
    with pytest.raises(UntrustedNoteError):
        verify_signatures(parse_note(GOOD.replace("3\n", "4\n")), [TRUSTED])


def test_repeated_good_signature_counts_twice_and_names_its_signer() -> None:
    verified = verify_signatures(Note(TEXT, (SIGNATURE, SIGNATURE)), [TRUSTED, TRUSTED])
    assert {each.verifier for each in verified} == {TRUSTED}


def test_two_trusted_keys_that_cannot_be_told_apart_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Verifier, "key_id", b"same")
    with pytest.raises(NoteError, match="same key id"):
        verify_signatures(
            Note(TEXT, (SIGNATURE,)), [TRUSTED, Verifier("log.example", OTHER.public)]
        )


MATERIAL = b"\1" + PUBLISHED_KEY


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "PeterNeumann",
        "PeterNeumann+c74f20a3",
        PUBLISHED.replace("c74f20a3", "c74f20a4"),
        PUBLISHED.replace("c74f20a3", "C74F20A3"),
        PUBLISHED.replace("c74f20a3", "c74f20a3 "),
        PUBLISHED.replace("c74f20a3", "0c74f20a3"),
        PUBLISHED.replace("Peter", "Paul"),
        PUBLISHED.replace("PeterNeumann", ""),
        PUBLISHED.replace("PeterNeumann", "Peter Neumann"),
        PUBLISHED + "=",
        PUBLISHED + "\n",
        PUBLISHED.rstrip("=")[:-1],
        "PeterNeumann+c74f20a3+",
        "PeterNeumann+c74f20a3+AQ==",
        f"PeterNeumann+c74f20a3+{b64_encode(MATERIAL + b'0')}",
        f"PeterNeumann+c74f20a3+{b64_encode(MATERIAL[:-1])}",
    ],
)
def test_a_verifier_key_in_another_form_is_refused(vkey: str) -> None:
    with pytest.raises(NoteError):
        parse_vkey(vkey)


@pytest.mark.parametrize("kind", [0, 2, 3, 5, 6, 0xFA, 0xFF])
def test_keys_of_other_types_are_refused_under_their_right_id(
    kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Verifier("a", KEY.public)
    object.__setattr__(made, "kind", kind)
    with pytest.raises(NoteError, match="a name, a key id and an Ed25519 key"):
        parse_vkey(made.vkey)


def test_weak_point_is_refused_as_a_verifier_key() -> None:
    weak = Verifier("a", PublicKey("EdDSA", "", b64u_encode(bytes(32)), _key=bytes(32)))
    with pytest.raises(NoteError):
        parse_vkey(weak.vkey)


@pytest.mark.parametrize("kind", list(SignatureType))
def test_verifier_keys_are_read_back(kind: SignatureType) -> None:
    made = Verifier("log.example/ä", KEY.public, kind)
    assert parse_vkey(made.vkey) == made


def test_one_key_for_two_purposes_is_two_verifiers() -> None:
    seeing = Verifier("log.example", KEY.public, SignatureType.COSIGNATURE)
    assert seeing.key_id != TRUSTED.key_id
    cosignature = cosign_text(TEXT, name="log.example", signer=KEY, at=1_679_315_147)
    note = Note(TEXT, (SIGNATURE, cosignature))
    assert [each.at for each in verify_signatures(note, [TRUSTED])] == [None]
    assert [each.at for each in verify_signatures(note, [seeing])] == [1_679_315_147]
    # Neither is accepted as the other, even if copied under the other's key id.
    for by, value in [
        (TRUSTED, cosignature.value),
        (TRUSTED, cosignature.value[8:]),
        (seeing, SIGNATURE.value),
    ]:
        with pytest.raises(UntrustedNoteError):
            verify_signatures(Note(TEXT, (Signature("log.example", by.key_id, value),)), [by])


def test_a_cosignature_is_over_its_time_and_the_text() -> None:
    made = cosign_text(TEXT, name="w", signer=KEY, at=1_679_315_147)
    assert made.value[:8] == (1_679_315_147).to_bytes(8, "big")
    KEY.public.verify(
        b"cosignature/v1\ntime 1679315147\n" + TEXT.encode(), made.value[8:], alg="EdDSA"
    )
    seeing = Verifier("w", KEY.public, SignatureType.COSIGNATURE)
    later = Signature("w", made.key_id, (1_679_315_148).to_bytes(8, "big") + made.value[8:])
    for note in (Note(TEXT, (later,)), Note(TEXT + "x\n", (made,))):
        with pytest.raises(UntrustedNoteError):
            verify_signatures(note, [seeing])


def test_the_time_of_a_cosignature_has_bounds() -> None:
    seeing = Verifier("w", KEY.public, SignatureType.COSIGNATURE)
    for at in (1, MAX_TIMESTAMP):
        note = Note(TEXT, (cosign_text(TEXT, name="w", signer=KEY, at=at),))
        assert [each.at for each in verify_signatures(note, [seeing])] == [at]
    for at in (-1, 0, MAX_TIMESTAMP + 1):
        with pytest.raises(NoteError, match="out of range"):
            cosign_text(TEXT, name="w", signer=KEY, at=at)
    # Signed correctly, by a witness that writes a forbidden value.
    late = MAX_TIMESTAMP + 1
    value = late.to_bytes(8, "big") + KEY.sign(f"cosignature/v1\ntime {late}\n{TEXT}".encode())
    with pytest.raises(UntrustedNoteError):
        verify_signatures(Note(TEXT, (Signature("w", seeing.key_id, value),)), [seeing])


class LyingSigner(LocalSigner):
    """A key service that returns something else."""

    def sign(self, message: bytes) -> bytes:
        return OTHER.sign(message)


def test_what_a_signer_gave_back_is_checked_before_it_is_used() -> None:
    lying = LyingSigner(PrivateKey.generate())
    with pytest.raises(InvalidSignatureError):
        sign_text(TEXT, name="a", signer=lying)
    with pytest.raises(InvalidSignatureError):
        cosign_text(TEXT, name="a", signer=lying, at=1)


def test_only_ed25519_signs() -> None:
    signer = LocalSigner(PrivateKey.generate("ES256"))
    with pytest.raises(InvalidKeyError):
        sign_text(TEXT, name="a", signer=signer)
    with pytest.raises(InvalidKeyError):
        cosign_text(TEXT, name="a", signer=signer, at=1)


@pytest.mark.parametrize("text", ["", "a", "a\r\n", "a\tb\n", "\ud800\n"])
def test_what_no_note_can_hold_is_not_signed(text: str) -> None:
    with pytest.raises(NoteError):
        sign_text(text, name="a", signer=KEY)
    with pytest.raises(NoteError):
        cosign_text(text, name="a", signer=KEY, at=1)
    with pytest.raises(NoteError):
        format_note(text, [SIGNATURE])


def test_no_note_is_written_that_would_be_read_otherwise() -> None:
    with pytest.raises(NoteError):
        format_note(TEXT, [])
    for name in ("two\n— lines", "a b", ""):
        with pytest.raises(NoteError):
            format_note(TEXT, [Signature(name, b"1234", b"value")])
    with pytest.raises(NoteError, match="cannot be read back"):
        format_note(TEXT, [Signature("a", b"12345", b"value")])


def test_an_answer_of_signature_lines_holds_nothing_else() -> None:
    assert parse_signatures(LINE * 2) == (SIGNATURE, SIGNATURE)
    for lines in ("", "\n", LINE + "\n", "\n" + LINE, GOOD, LINE.removesuffix("\n"), LINE * 17):
        with pytest.raises(NoteError):
            parse_signatures(lines)


LETTERS = st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp"), exclude_characters="+")
NAMES = st.text(LETTERS, min_size=1).filter(lambda name: not any(map(str.isspace, name)))
TEXTS = st.text(st.one_of(st.just("\n"), st.characters(exclude_categories=("Cs", "Cc")))).map(
    "{}\n".format
)
SIGNATURES = st.builds(
    Signature, NAMES, st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=100)
)


@given(TEXTS, st.lists(SIGNATURES, min_size=1, max_size=16))
def test_what_is_written_is_read_back(text: str, signatures: list[Signature]) -> None:
    written = format_note(text, signatures)
    assert parse_note(written.encode()) == Note(text, tuple(signatures))


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_anything_is_read_or_refused(data: bytes | str) -> None:
    try:
        note = parse_note(data)
    except NoteError:
        return
    assert format_note(note.text, note.signatures) == (
        data if isinstance(data, str) else data.decode()
    )
