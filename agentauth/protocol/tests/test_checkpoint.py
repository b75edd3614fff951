"""Checkpoints: the published examples, which keys may sign for a log, and what is refused."""

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentauth.protocol.checkpoint import (
    MAX_SIZE,
    Checkpoint,
    cosign_checkpoint,
    open_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
)
from agentauth.protocol.encoding import b64_decode, sha256
from agentauth.protocol.errors import InvalidKeyError, NoteError, UntrustedNoteError
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.signed_notes import (
    Note,
    Signature,
    SignatureType,
    Verifier,
    format_note,
    parse_note,
    sign_text,
)

# The example of c2sp.org/tlog-cosignature, whose keys it does not name.
PUBLISHED = """example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
"""  # noqa: E501
ROOT = sha256(b"root")
ORIGIN = "log.example/v1/audit"
LOG, WITNESS, STRANGER = (LocalSigner(PrivateKey.generate()) for _ in range(3))
LOG_KEY = Verifier(ORIGIN, LOG.public)
WITNESS_KEY = Verifier("witness.example", WITNESS.public, SignatureType.COSIGNATURE)
CHECKPOINT = Checkpoint(ORIGIN, 3, ROOT)
SIGNED = sign_checkpoint(CHECKPOINT, signer=LOG)
COSIGNATURE = cosign_checkpoint(
    CHECKPOINT, name="witness.example", signer=WITNESS, at=1_700_000_000
)


def cosigned(note: Note, added: Iterable[Signature]) -> str:
    return format_note(note.text, [*note.signatures, *added])


COSIGNED = cosigned(parse_note(SIGNED), [COSIGNATURE])


def test_the_published_checkpoint_is_read_and_written_to_the_byte() -> None:
    note = parse_note(PUBLISHED)
    checkpoint = parse_checkpoint(note.text)
    root = b64_decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
    assert checkpoint == Checkpoint("example.com/behind-the-sofa", 20852163, root)
    assert (checkpoint.head.size, checkpoint.head.root) == (20852163, root)
    assert format_note(checkpoint.text, note.signatures) == PUBLISHED
    # The time in the published cosignature is that of its signed message.
    assert int.from_bytes(note.signatures[1].value[:8], "big") == 1679315147


def test_a_signed_checkpoint_is_opened() -> None:
    opened = open_checkpoint(SIGNED.encode(), log_keys=[LOG_KEY], expected_origin=ORIGIN)
    assert (opened.checkpoint, opened.cosignatures) == (CHECKPOINT, ())
    # Deterministic: the same tree signed again is the same note.
    assert sign_checkpoint(CHECKPOINT, signer=LOG) == SIGNED


def test_cosignatures_of_trusted_witnesses_come_with_their_time() -> None:
    opened = open_checkpoint(
        COSIGNED, log_keys=[LOG_KEY], witnesses=[WITNESS_KEY], expected_origin=ORIGIN
    )
    [cosigned] = opened.cosignatures
    assert (cosigned.verifier, cosigned.at) == (WITNESS_KEY, 1_700_000_000)
    assert SIGNED + COSIGNATURE.line == COSIGNED
    assert open_checkpoint(COSIGNED, log_keys=[LOG_KEY], expected_origin=ORIGIN).cosignatures == ()


def test_a_note_has_sixteen_signatures_at_most() -> None:
    many = [cosign_checkpoint(CHECKPOINT, name="w", signer=WITNESS, at=at) for at in range(1, 17)]
    assert len(parse_note(cosigned(parse_note(SIGNED), many[:15])).signatures) == 16
    with pytest.raises(NoteError, match="at most 16"):
        cosigned(parse_note(SIGNED), many)


def test_AU_17_who_does_not_sign_for_the_log_is_not_enough() -> None:
    by_witness_alone = format_note(CHECKPOINT.text, [COSIGNATURE])
    by_stranger = format_note(
        CHECKPOINT.text, [sign_text(CHECKPOINT.text, name=ORIGIN, signer=STRANGER)]
    )
    for note in (by_witness_alone, by_stranger):
        with pytest.raises(UntrustedNoteError, match="No trusted key"):
            open_checkpoint(
                note, log_keys=[LOG_KEY], witnesses=[WITNESS_KEY], expected_origin=ORIGIN
            )
    with pytest.raises(UntrustedNoteError, match="No trusted key"):
        open_checkpoint(SIGNED, log_keys=[], expected_origin=ORIGIN)


def test_key_in_the_wrong_trust_list_is_not_trusted() -> None:
    seeing = Verifier(ORIGIN, WITNESS.public, SignatureType.COSIGNATURE)
    note = format_note(
        CHECKPOINT.text, [cosign_checkpoint(CHECKPOINT, name=ORIGIN, signer=WITNESS, at=1)]
    )
    with pytest.raises(UntrustedNoteError, match="No trusted key"):
        open_checkpoint(note, log_keys=[seeing], expected_origin=ORIGIN)
    with pytest.raises(UntrustedNoteError, match="No trusted key"):
        open_checkpoint(SIGNED, log_keys=[], witnesses=[LOG_KEY], expected_origin=ORIGIN)
    opened = open_checkpoint(COSIGNED, log_keys=[LOG_KEY, WITNESS_KEY], expected_origin=ORIGIN)
    assert opened.cosignatures == ()


def test_AU_17_a_bad_signature_of_log_or_witness_spoils_the_checkpoint() -> None:
    later = Checkpoint(ORIGIN, 4, ROOT)
    log_lied = format_note(later.text, [*parse_note(SIGNED).signatures])
    witness_lied = cosigned(parse_note(sign_checkpoint(later, signer=LOG)), [COSIGNATURE])
    for note in (log_lied, witness_lied):
        with pytest.raises(UntrustedNoteError, match="does not verify"):
            open_checkpoint(
                note, log_keys=[LOG_KEY], witnesses=[WITNESS_KEY], expected_origin=ORIGIN
            )
    # An untrusted witness is not reported.
    assert (
        open_checkpoint(witness_lied, log_keys=[LOG_KEY], expected_origin=ORIGIN).checkpoint
        == later
    )


def test_another_logs_checkpoint_is_refused_under_a_key_of_both() -> None:
    with pytest.raises(UntrustedNoteError, match="another log"):
        open_checkpoint(SIGNED, log_keys=[LOG_KEY], expected_origin="log.example/v2/audit")


def test_extension_lines_are_kept_and_signed() -> None:
    extended = Checkpoint(ORIGIN, 3, ROOT, ("one", "— two"))
    note = sign_checkpoint(extended, signer=LOG)
    assert open_checkpoint(note, log_keys=[LOG_KEY], expected_origin=ORIGIN).checkpoint == extended
    with pytest.raises(UntrustedNoteError):
        open_checkpoint(note.replace("one", "uno"), log_keys=[LOG_KEY], expected_origin=ORIGIN)
    cosignature = cosign_checkpoint(extended, name="witness.example", signer=WITNESS, at=1)
    with pytest.raises(UntrustedNoteError):
        open_checkpoint(
            cosigned(parse_note(SIGNED), [cosignature]),
            log_keys=[LOG_KEY],
            witnesses=[WITNESS_KEY],
            expected_origin=ORIGIN,
        )


ORIGIN_LINE, SIZE_LINE, ROOT_LINE = CHECKPOINT.text.split("\n")[:3]
BAD_TEXTS = {
    "nothing": "",
    "one line": f"{ORIGIN_LINE}\n",
    "two lines": f"{ORIGIN_LINE}\n{SIZE_LINE}\n",
    "no last line feed": CHECKPOINT.text.removesuffix("\n"),
    "CRLF": CHECKPOINT.text.replace("\n", "\r\n"),
    "an empty origin": f"\n{SIZE_LINE}\n{ROOT_LINE}\n",
    "an empty size": f"{ORIGIN_LINE}\n\n{ROOT_LINE}\n",
    "an empty root": f"{ORIGIN_LINE}\n{SIZE_LINE}\n\n",
    "an empty extension": CHECKPOINT.text + "\n",
    "an empty extension and one more": CHECKPOINT.text + "\nx\n",
    "a control character": CHECKPOINT.text.replace("log", "l\x07g"),
    "a control character in an extension": CHECKPOINT.text + "a\x1bb\n",
    **{
        f"the size {size!r}": CHECKPOINT.text.replace("\n3\n", f"\n{size}\n")
        for size in (
            "03",
            "00",
            "+3",
            "-3",
            " 3",
            "3 ",
            "3.0",
            "0x3",
            "3_0",
            "٣",
            "three",
            str(MAX_SIZE + 1),
            "9" * 99,
        )
    },
    **{
        f"the root {name}": f"{ORIGIN_LINE}\n{SIZE_LINE}\n{root}\n"
        for name, root in {
            "without padding": ROOT_LINE.rstrip("="),
            "and a space": ROOT_LINE + " ",
            "of 31 bytes": "A" * 42 + "==",
            "of 33 bytes": "A" * 44,
            "with bits behind": "A" * 42 + "B=",
            "in hex": ROOT.hex(),
            "of another alphabet": "-" + ROOT_LINE[1:],
        }.items()
    },
}


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_AU_17_malformed_checkpoint_with_valid_signature_is_refused(text: str) -> None:
    with pytest.raises(NoteError) as refused:
        parse_checkpoint(text)
    assert refused.value.code == "invalid_note"
    signature = parse_note(SIGNED).signatures[0]
    if text.endswith("\n") and not any(character < " " for character in text.replace("\n", "")):
        signature = sign_text(text, name=ORIGIN, signer=LOG)
    with pytest.raises(NoteError):
        open_checkpoint(f"{text}\n{signature.line}", log_keys=[LOG_KEY], expected_origin=ORIGIN)


def test_a_checkpoint_may_be_as_large_as_63_bits_count() -> None:
    largest = Checkpoint("a", 2**63 - 1, ROOT)
    assert parse_checkpoint(largest.text) == largest


@pytest.mark.parametrize(
    "make",
    [
        lambda: Checkpoint("", 1, ROOT),
        lambda: Checkpoint("a\nb", 1, ROOT),
        lambda: Checkpoint("a\r", 1, ROOT),
        lambda: Checkpoint("\ud800", 1, ROOT),
        lambda: Checkpoint("a", -1, ROOT),
        lambda: Checkpoint("a", 2**63, ROOT),
        lambda: Checkpoint("a", 1, ROOT[1:]),
        lambda: Checkpoint("a", 1, ROOT, ("",)),
        lambda: Checkpoint("a", 1, ROOT, ("b\n",)),
        lambda: Checkpoint("a", 1, ROOT, ("b\t",)),
    ],
)
def test_checkpoint_without_a_text_form_is_refused(make: Callable[[], Checkpoint]) -> None:
    with pytest.raises(NoteError):
        make()


def test_a_log_whose_origin_names_no_key_does_not_sign() -> None:
    for origin in ("log example", "log+example"):
        assert parse_checkpoint(Checkpoint(origin, 1, ROOT).text).origin == origin
        with pytest.raises(NoteError, match="cannot name a key"):
            sign_checkpoint(Checkpoint(origin, 1, ROOT), signer=LOG)
    with pytest.raises(InvalidKeyError):
        sign_checkpoint(CHECKPOINT, signer=LocalSigner(PrivateKey.generate("ES256")))


LINES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)


@given(
    LINES,
    st.integers(0, MAX_SIZE),
    st.binary(min_size=32, max_size=32),
    st.lists(LINES, max_size=3),
)
def test_what_is_written_is_read_back(
    origin: str, size: int, root: bytes, extensions: list[str]
) -> None:
    checkpoint = Checkpoint(origin, size, root, tuple(extensions))
    assert parse_checkpoint(checkpoint.text) == checkpoint


@given(st.text())
def test_anything_is_read_or_refused(text: str) -> None:
    try:
        checkpoint = parse_checkpoint(text)
    except NoteError:
        return
    assert checkpoint.text == text
