"""Proofs and requests as texts: the published examples, proofs of a real tree, and each text
that is refused.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentauth.protocol.checkpoint import Checkpoint, sign_checkpoint
from agentauth.protocol.checkpoint_proofs import (
    MAX_HASHES,
    AddCheckpoint,
    LogProof,
    format_size_answer,
    parse_add_checkpoint,
    parse_log_proof,
    parse_size_answer,
    verify_log_proof,
)
from agentauth.protocol.encoding import b64_decode, b64_encode, sha256
from agentauth.protocol.errors import ChainError, NoteError, UntrustedNoteError
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.log_hashes import CompactTree, leaf_hash, node_hash
from agentauth.protocol.merkle_proofs import prove_inclusion
from agentauth.protocol.signed_notes import MAX_NOTE_BYTES, Verifier, parse_note

# The example of c2sp.org/tlog-witness.
PUBLISHED_REQUEST = """old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=
"""  # noqa: E501
# The head of the example of c2sp.org/tlog-proof; its checkpoint is printed with parts left out.
PUBLISHED_PROOF = """c2sp.org/tlog-proof@v1
extra YWdlLXYxLjIuMS1kYXJ3aW4tYXJtNjQudGFyLmd6kYXJ3aW4tYXJ
index 73894
gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=
B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=
EKNzoDWG8LGC0Yp9o+sv3qllpMP9uHQ9B20KNL+Q1zs=
RoopEkOdqkYqMB4MJXrbt/hMjOxsVn0IrWjpz1ZMMes=
AHCioX9nLjsrse6YhjRRmk1WUEirVOLLRoOQ6vfO5vk=

"""
ORIGIN = "log.example/v1/audit"
LOG = LocalSigner(PrivateKey.generate())
LOG_KEY = Verifier(ORIGIN, LOG.public)
LEAVES = [leaf_hash(bytes([number])) for number in range(7)]
TREE = CompactTree()
for _leaf in LEAVES:
    TREE.append(_leaf)
NOTE = sign_checkpoint(Checkpoint(ORIGIN, 7, TREE.root()), signer=LOG)
TEXT, _, LINES = NOTE.rpartition("\n\n")
HASH = b64_encode(sha256(b"hash"))
TOO_MANY = f"{HASH}\n" * (MAX_HASHES + 1)


def subtree(height: int, index: int) -> bytes:
    if height == 0:
        return LEAVES[index]
    return node_hash(subtree(height - 1, 2 * index), subtree(height - 1, 2 * index + 1))


def proof(index: int, extra: bytes | None = None) -> LogProof:
    return LogProof(index, tuple(prove_inclusion(index, 7, subtree)), NOTE, extra)


def test_the_published_request_is_read_and_written_to_the_byte() -> None:
    request = parse_add_checkpoint(PUBLISHED_REQUEST.encode())
    assert request.old_size == 20852014
    assert request.path[1] == b64_decode("jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=")
    assert len(request.path) == 4
    assert len(parse_note(request.checkpoint).signatures) == 2
    assert request.text == PUBLISHED_REQUEST


def test_the_published_proof_is_read_and_written_to_the_byte() -> None:
    read = parse_log_proof(PUBLISHED_PROOF + NOTE)
    assert (read.index, len(read.path), read.checkpoint) == (73894, 5, NOTE)
    assert read.extra is not None
    assert read.extra.startswith(b"age-v1.2.1-darwin-arm64.tar.gz")
    assert read.text == PUBLISHED_PROOF + NOTE


@pytest.mark.parametrize("index", range(7))
def test_log_proof_shows_that_its_leaf_is_in_the_log(index: int) -> None:
    text = proof(index, extra=b"salt").text
    opened = verify_log_proof(text, leaf=LEAVES[index], log_keys=[LOG_KEY], expected_origin=ORIGIN)
    assert opened.checkpoint.size == 7
    with pytest.raises(ChainError):
        verify_log_proof(text, leaf=LEAVES[index - 1], log_keys=[LOG_KEY], expected_origin=ORIGIN)


def test_a_proof_needs_the_logs_signature() -> None:
    text = proof(3).text
    assert "extra" not in text
    stranger = Verifier(ORIGIN, PrivateKey.generate().public)
    for keys, origin in [([stranger], ORIGIN), ([], ORIGIN), ([LOG_KEY], "other.example")]:
        with pytest.raises(UntrustedNoteError):
            verify_log_proof(text, leaf=LEAVES[3], log_keys=keys, expected_origin=origin)


def test_a_proof_beyond_the_signed_tree_is_refused() -> None:
    beyond = LogProof(7, proof(6).path, NOTE).text
    with pytest.raises(ChainError):
        verify_log_proof(beyond, leaf=LEAVES[6], log_keys=[LOG_KEY], expected_origin=ORIGIN)


TAG = "c2sp.org/tlog-proof@v1"
BAD_PROOFS = {
    "nothing": "",
    "a checkpoint alone": NOTE,
    "another version": f"c2sp.org/tlog-proof@v2\nindex 1\n\n{NOTE}",
    "no version": f"index 1\n\n{NOTE}",
    "no index": f"{TAG}\n\n{NOTE}",
    "hashes and no index": f"{TAG}\n{HASH}\n\n{NOTE}",
    "an index after the hashes": f"{TAG}\n{HASH}\nindex 1\n\n{NOTE}",
    "two indexes": f"{TAG}\nindex 1\nindex 1\n\n{NOTE}",
    "a leading zero": f"{TAG}\nindex 01\n\n{NOTE}",
    "a negative index": f"{TAG}\nindex -1\n\n{NOTE}",
    "two spaces": f"{TAG}\nindex  1\n\n{NOTE}",
    "an index too large": f"{TAG}\nindex {2**63}\n\n{NOTE}",
    "no empty line": f"{TAG}\nindex 1\n{NOTE}",
    "an empty line more": f"{TAG}\nindex 1\n\n\n{NOTE}",
    "a hash of 31 bytes": f"{TAG}\nindex 1\n{b64_encode(bytes(31))}\n\n{NOTE}",
    "a hash that is not base64": f"{TAG}\nindex 1\nx\n\n{NOTE}",
    "64 hashes": f"{TAG}\nindex 1\n{TOO_MANY}\n{NOTE}",
    "extra after the index": f"{TAG}\nindex 1\nextra eA==\n\n{NOTE}",
    "extra twice": f"{TAG}\nextra eA==\nextra eA==\nindex 1\n\n{NOTE}",
    "extra of nothing": f"{TAG}\nextra \nindex 1\n\n{NOTE}",
    "extra that is not base64": f"{TAG}\nextra eA\nindex 1\n\n{NOTE}",
    "CRLF": f"{TAG}\nindex 1\n\n{NOTE}".replace("\n", "\r\n"),
    "no checkpoint": f"{TAG}\nindex 1\n\n",
    "a note that is no checkpoint": f"{TAG}\nindex 1\n\ntext\n\n{LINES}",
    "a checkpoint without signature": f"{TAG}\nindex 1\n\n{TEXT}\n",
    "something behind": f"{TAG}\nindex 1\n\n{NOTE}x",
}


@pytest.mark.parametrize("text", BAD_PROOFS.values(), ids=BAD_PROOFS)
def test_a_proof_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        parse_log_proof(text)


BAD_REQUESTS = {
    "nothing": "",
    "a checkpoint alone": NOTE,
    "no size": f"{HASH}\n\n{NOTE}",
    "an empty size": f"old \n\n{NOTE}",
    "no old": f"3\n\n{NOTE}",
    "Old": f"Old 3\n\n{NOTE}",
    "a leading zero": f"old 03\n\n{NOTE}",
    "a double zero": f"old 00\n\n{NOTE}",
    "a sign": f"old +3\n\n{NOTE}",
    "a size too large": f"old {2**63}\n\n{NOTE}",
    "two sizes": f"old 3\nold 3\n\n{NOTE}",
    "no empty line": f"old 3\n{NOTE}",
    "an empty line more": f"old 3\n\n\n{NOTE}",
    "a short hash": f"old 3\n{b64_encode(bytes(31))}\n\n{NOTE}",
    "a hash in hex": f"old 3\n{bytes(32).hex()}\n\n{NOTE}",
    "a hash with a space": f"old 3\n{HASH} \n\n{NOTE}",
    "64 hashes": f"old 3\n{TOO_MANY}\n{NOTE}",
    "CRLF": f"old 3\n\n{NOTE}".replace("\n", "\r\n"),
    "no checkpoint": "old 3\n\n",
    "a checkpoint without signature": f"old 3\n\n{TEXT}\n",
    "a bad checkpoint": "old 3\n\n" + NOTE.replace("\n7\n", "\n07\n"),
    "something behind": f"old 3\n\n{NOTE}x",
}


@pytest.mark.parametrize("text", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_AU_18_a_request_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        parse_add_checkpoint(text)


def test_63_hashes_are_read() -> None:
    hashes = (sha256(b"hash"),) * MAX_HASHES
    request = AddCheckpoint(3, hashes, NOTE)
    assert parse_add_checkpoint(request.text) == request
    assert parse_log_proof(LogProof(3, hashes, NOTE).text).path == hashes


@pytest.mark.parametrize(
    "made",
    [
        AddCheckpoint(-1, (), NOTE),
        AddCheckpoint(1, (b"short",), NOTE),
        AddCheckpoint(1, (bytes(32),) * 64, NOTE),
        AddCheckpoint(1, (), "no note\n"),
        AddCheckpoint(1, (), "old 1\n\n" + NOTE),
        LogProof(-1, (), NOTE),
        LogProof(1, (b"short",), NOTE),
        LogProof(1, (), NOTE, b""),
        LogProof(1, (), ""),
        LogProof(1, (), "x" * MAX_NOTE_BYTES + NOTE),
    ],
)
def test_no_text_is_written_that_would_be_read_otherwise(made: AddCheckpoint | LogProof) -> None:
    with pytest.raises(NoteError):
        assert made.text


def test_AU_18_the_size_a_witness_answers_is_one_line() -> None:
    assert parse_size_answer(format_size_answer(20852163).encode()) == 20852163
    assert parse_size_answer("0\n") == 0
    for body in (
        "",
        "\n",
        "3",
        "03\n",
        "3\n\n",
        "3\r\n",
        " 3\n",
        "3 \n",
        "x\n",
        "3\n4\n",
        f"{2**63}\n",
        "9" * 200_000,
    ):
        with pytest.raises(NoteError):
            parse_size_answer(body)


@given(
    st.binary(max_size=200) | st.text(max_size=200),
    st.sampled_from(["", f"{TAG}\nindex ", "old "]),
    st.booleans(),
)
def test_anything_is_read_or_refused(data: bytes | str, head: str, whole: bool) -> None:
    text = (
        head
        + (data if isinstance(data, str) else data.decode("latin-1"))
        + ("\n\n" + NOTE if whole else "")
    )
    for parse in (parse_log_proof, parse_add_checkpoint):
        try:
            assert parse(text).text == text
        except NoteError:
            continue
