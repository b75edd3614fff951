"""The `awskms:` backend on a fake service that throttles, refuses, lies, stalls or breaks off."""

import base64
import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import InvalidStateError, TemporarilyUnavailableError
from agentauth.protocol.keys import PrivateKey
from kms.backends import BackendError, BusyError, awskms, create, open_signer, public_key
from kms.backends.awskms import AwskmsBackend
from kms.backends.der import raw_signature
from kms.backends.errors import ThrottledError
from kms.models import Key
from kms.services import rotate_key
from kms.tests.conftest import AWS_CREDENTIALS
from kms.tests.fake_awskms import ARN, URI, FakeKms, base64_text, der, refusal, reset, serving
from kms.tests.test_keys import ACTOR, NOW
from tests.live import ROOT

ACCOUNT = ARN.split(":")[4]


@pytest.fixture(params=["EdDSA"])
def fake(request: pytest.FixtureRequest, aws: pytest.MonkeyPatch) -> Iterator[FakeKms]:
    fake = FakeKms(request.param)
    with serving(fake) as url:
        aws.setenv("AWS_ENDPOINT_URL_KMS", url)
        yield fake


P256 = pytest.mark.parametrize("fake", ["ES256"], indirect=True)


def prehashed(fake: FakeKms, asked: dict[str, Any]) -> bytes:
    assert asked["MessageType"] == "DIGEST"
    key: Any = fake.key._key
    return bytes(key.sign(base64.b64decode(asked["Message"]), ec.ECDSA(Prehashed(SHA256()))))


def test_the_fake_can_tell_the_truth_and_opening_a_key_asks_nothing(fake: FakeKms) -> None:
    signing = open_signer(URI, fake.key.public)
    assert fake.asked == []
    assert signing.sign(b"m") == fake.key.sign(b"m")
    assert signing.sign(b"n") == fake.key.sign(b"n")
    # The record already says which kind of key it is.
    assert [operation for operation, _ in fake.asked] == ["Sign", "Sign"]
    assert fake.asked[0][1] == {
        "KeyId": ARN, "Message": base64_text(b"m"), "MessageType": "RAW",
        "SigningAlgorithm": "ED25519_SHA_512",
    }  # fmt: skip


@P256
def test_KM_7_leading_zeros_of_r_and_s_are_kept(fake: FakeKms) -> None:
    def short(half: slice) -> Callable[[dict[str, Any]], tuple[int, Any]]:
        """Sign until this half begins with a zero byte, which its DER omits."""

        def answer(asked: dict[str, Any]) -> tuple[int, Any]:
            while True:
                made = prehashed(fake, asked)
                if raw_signature(made)[half] == b"\0":
                    return 200, fake.signed(made)

        return answer

    held = AwskmsBackend().open(URI)
    for half in (slice(0, 1), slice(32, 33)):
        fake.answers["Sign"] = short(half)
        signature = held.sign(b"m", "ES256")
        assert len(signature) == 64
        assert signature[half] == b"\0"
        fake.key.public.verify(b"m", signature, alg="ES256")


@P256
@pytest.mark.parametrize(
    "lie",
    [
        lambda fake, _asked: der(fake.key.sign(b"other")),
        lambda _fake, _asked: der(PrivateKey.generate("ES256").sign(b"m")),
        lambda fake, _asked: fake.key.sign(b"m"),
        lambda fake, _asked: der(fake.key.sign(b"m")) + b"\0",
        lambda fake, _asked: der(fake.key.sign(b"m"))[:-1],
        lambda _fake, _asked: der(bytes(64)),
        lambda _fake, _asked: der(b"\xff" * 64),
        lambda _fake, _asked: bytes.fromhex("3026022100") + b"\x01" + bytes(32) + b"\x02\x01\x01",
        lambda _fake, _asked: b"",
    ],
    ids=[
        "of-another-message", "by-another-key", "not-DER", "longer", "shorter", "zero",
        "past-the-order", "too-long-r", "empty",
    ],
)  # fmt: skip
def test_a_P256_signature_that_is_not_the_one_asked_for_is_never_used(
    fake: FakeKms, lie: Callable[[FakeKms, Any], bytes]
) -> None:
    fake.answers["Sign"] = lambda asked: (200, fake.signed(lie(fake, asked)))
    with pytest.raises(BackendError):
        open_signer(URI, fake.key.public).sign(b"m")


@pytest.mark.parametrize(
    "signature",
    [
        lambda key: key.sign(b"other"),
        lambda _key: PrivateKey.generate().sign(b"m"),
        lambda key: key.sign(b"m")[:63],
        lambda key: key.sign(b"m") + b"\0",
        lambda _key: b"",
        lambda _key: None,
        lambda _key: 5,
        lambda _key: {"a": 1},
        lambda _key: "é",
        lambda _key: "a",
    ],
    ids=[
        "of-another-message", "by-another-key", "short", "long", "empty", "null", "number",
        "object", "not-ascii", "not-base64",
    ],
)  # fmt: skip
def test_a_signature_that_is_not_the_one_asked_for_is_never_used(
    fake: FakeKms, signature: Callable[[PrivateKey], Any]
) -> None:
    fake.answers["Sign"] = lambda _asked: (200, fake.signed(signature(fake.key)))
    with pytest.raises(BackendError):
        open_signer(URI, fake.key.public).sign(b"m")


def spki(key: Any) -> str:
    return base64_text(
        key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )


ED25519_HEAD = bytes.fromhex("302a300506032b6570032100")


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("KeyId", ARN[:-1] + "2"),
        ("KeyUsage", "KEY_AGREEMENT"),
        ("KeyUsage", None),
        ("KeySpec", "ECC_NIST_P256"),
        ("KeySpec", 5),
        ("SigningAlgorithms", ["ED25519_PH_SHA_512"]),
        ("SigningAlgorithms", []),
        ("SigningAlgorithms", None),
        ("PublicKey", base64_text(ED25519_HEAD + bytes(32))),
        ("PublicKey", base64_text(ED25519_HEAD + b"\xff" * 32)),
        ("PublicKey", base64_text(ED25519_HEAD + bytes(31))),
        ("PublicKey", base64_text(bytes(32))),
        ("PublicKey", ""),
        ("PublicKey", None),
        ("PublicKey", 5),
        ("PublicKey", "é"),
    ],
)
def test_a_public_key_that_is_none_of_ours_is_refused(
    fake: FakeKms, member: str, value: Any
) -> None:
    assert public_key(URI) == fake.key.public
    fake.answers["GetPublicKey"] = lambda _asked: (200, fake.public(**{member: value}))
    with pytest.raises(BackendError):
        public_key(URI)


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1])
def test_a_public_key_of_another_kind_than_the_service_says_is_refused(
    fake: FakeKms, curve: Any
) -> None:
    fake.answers["GetPublicKey"] = lambda _asked: (
        200,
        fake.public(PublicKey=spki(ec.generate_private_key(curve()))),
    )
    with pytest.raises(BackendError, match=r"must be Ed25519 or P-256|unsupported type"):
        public_key(URI)


@pytest.mark.parametrize(
    "body", [b"", b"garbage", b"[]", b"null", b"{", b"\xff\xfe", b"{}", b"<html>"]
)
@pytest.mark.parametrize("status", [200, 400, 404, 418, 500, 503])
def test_an_answer_that_is_none_is_an_error(fake: FakeKms, body: bytes, status: int) -> None:
    fake.answers["GetPublicKey"] = lambda _asked: (status, body)
    with pytest.raises(BackendError) as refused:
        AwskmsBackend().open(URI).public()
    # If the library fails on a body, not even the status is known.
    assert isinstance(refused.value, BusyError) is (
        status >= 500 and body not in {b"[]", b"null", b"\xff\xfe"}
    )
    assert "html" not in str(refused.value)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ThrottlingException", 400),
        ("com.amazonaws.kms#ThrottlingException", 400),
        ("KMSInternalException", 500),
        ("DependencyTimeoutException", 503),
        ("KeyUnavailableException", 500),
        ("ServiceUnavailable", 503),
        ("TooManyRequests", 429),
    ],
)
def test_KM_2_transient_error_is_reported_as_busy_and_tried_once(
    fake: FakeKms, code: str, status: int
) -> None:
    fake.answers["GetPublicKey"] = refusal(code, status)
    with pytest.raises(BusyError, match=code.rpartition("#")[2]):
        AwskmsBackend().open(URI).public()
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    ("code", "status"), [("ThrottlingException", 400), ("TooManyRequests", 429)]
)
def test_KM_2_throttling_is_distinguished_from_an_unavailable_service(
    fake: FakeKms, code: str, status: int
) -> None:
    fake.answers["GetPublicKey"] = refusal(code, status)
    with pytest.raises(ThrottledError):
        AwskmsBackend().open(URI).public()


@pytest.mark.django_db
def test_KM_9_Ed25519_key_is_accepted_for_tokens_but_not_for_receipts(
    fake: FakeKms,
) -> None:
    with pytest.raises(InvalidStateError, match="Use a P-256 key"):
        rotate_key(purpose="receipt", actor=ACTOR, now=NOW, uri=URI)
    assert not Key.objects.exists()
    assert (
        rotate_key(purpose="token", actor=ACTOR, now=NOW, uri=URI).kid == fake.key.public.thumbprint
    )


@pytest.mark.django_db
@P256
def test_KM_9_P256_key_is_accepted_for_receipts_as_it_signs_a_digest(fake: FakeKms) -> None:
    fake.answers["Sign"] = lambda asked: (200, fake.signed(prehashed(fake, asked)))
    assert rotate_key(purpose="receipt", actor=ACTOR, now=NOW, uri=URI).algorithm == "ES256"


@pytest.mark.django_db
def test_KM_2_throttling_says_nothing_about_the_maximum_message_length(fake: FakeKms) -> None:
    sign = fake.answers["Sign"]
    fake.answers["Sign"] = lambda asked: (
        sign(asked) if len(asked["Message"]) < 100 else refusal("ThrottlingException")(asked)
    )
    with pytest.raises(TemporarilyUnavailableError):
        rotate_key(purpose="token", actor=ACTOR, now=NOW, uri=URI)


SAID = f"User: arn:aws:iam::{ACCOUNT}:user/of-a-test is not authorized; {ARN} is pending deletion."


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("AccessDeniedException", "the credentials do not allow it"),
        ("DisabledException", "the key is disabled"),
        ("NotFoundException", "there is no such key"),
        ("KMSInvalidStateException", "the key will be deleted"),
        ("InvalidKeyUsageException", "the key is not for signing"),
        ("UnsupportedOperationException", "unsupported type"),
        ("ExpiredTokenException", "have expired: ExpiredTokenException"),
        ("UnrecognizedClientException", "were refused or have expired"),
        ("InvalidSignatureException", "were refused or have expired"),
        ("ValidationException", "ValidationException"),
        ("Made<up>\n" + "x" * 200, "Madeup"),
    ],
)
def test_KM_4_operator_error_is_not_retried_and_hides_the_account(
    fake: FakeKms, code: str, said: str
) -> None:
    fake.answers["GetPublicKey"] = refusal(code, 400, SAID)
    with pytest.raises(BackendError, match=said) as refused:
        AwskmsBackend().open(URI).public()
    assert not isinstance(refused.value, BusyError)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    assert not any(word in str(refused.value) for word in (ACCOUNT, "of-a-test", "\n", "x" * 65))
    assert len(fake.asked) == 1


def test_KM_4_another_state_than_deletion_is_named_as_such(fake: FakeKms) -> None:
    fake.answers["Sign"] = refusal("KMSInvalidStateException", 400, f"{ARN} is pending import.")
    with pytest.raises(BackendError, match="in a state in which it cannot be used"):
        AwskmsBackend().open(URI).sign(b"m", "EdDSA")


def silent(fake: FakeKms) -> Callable[[Any], None]:
    def act(_handler: Any) -> None:
        fake.release.wait(60)

    return act


@pytest.mark.parametrize("trouble", [silent, lambda _fake: reset], ids=["silent", "reset"])
def test_KM_1_a_service_that_stalls_or_breaks_off_is_busy(fake: FakeKms, trouble: Any) -> None:
    held = AwskmsBackend().open(URI)
    held.sign(b"m", "EdDSA")
    fake.answers["Sign"] = lambda _asked: (0, trouble(fake))
    with pytest.raises(BusyError):
        held.sign(b"m", "EdDSA")
    assert [operation for operation, _ in fake.asked] == ["Sign", "Sign"]


def test_KM_14_a_service_that_is_away_is_busy(aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:1")
    with pytest.raises(BusyError):
        AwskmsBackend().open(URI).public()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_SS_4_a_redirect_is_not_followed(fake: FakeKms, status: int) -> None:
    for operation in ("GetPublicKey", "CreateKey"):
        fake.answers[operation] = lambda _asked: (status, {})
    with pytest.raises(BackendError):
        AwskmsBackend().open(URI).public()
    with pytest.raises(BackendError):
        create(purpose="token")
    assert fake.elsewhere == []


def test_a_key_that_is_made_slowly_is_not_given_up_on(fake: FakeKms) -> None:
    made = fake.answers["CreateKey"]

    def slowly(asked: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(awskms.READ_SECONDS + 0.2)
        return made(asked)

    fake.answers["CreateKey"] = slowly
    assert create(purpose="token") == (URI, fake.key.public)
    assert [operation for operation, _ in fake.asked] == ["CreateKey", *["GetPublicKey"] * 2]


@pytest.mark.parametrize("code", ["NotFoundException", "KMSInternalException"])
def test_a_key_that_was_just_made_is_waited_for(fake: FakeKms, code: str) -> None:
    found = fake.answers["GetPublicKey"]
    fake.answers["GetPublicKey"] = lambda asked: (
        found(asked) if len(fake.asked) > 3 else refusal(code)(asked)
    )
    assert create(purpose="token") == (URI, fake.key.public)
    assert [operation for operation, _ in fake.asked] == ["CreateKey", *["GetPublicKey"] * 4]


def test_a_key_that_is_never_seen_is_an_error_in_the_end(
    fake: FakeKms, aws: pytest.MonkeyPatch
) -> None:
    aws.setattr(awskms, "SEEN_SECONDS", 0.1)
    fake.answers["GetPublicKey"] = refusal("NotFoundException")
    with pytest.raises(
        BackendError, match=f"no such key. A key was created but cannot be used: {URI}$"
    ):
        create(purpose="token")


@pytest.mark.parametrize(
    "made", [None, {}, {"KeyMetadata": {}}, {"KeyMetadata": {"Arn": "arn:aws:kms:alias/x"}}]
)
def test_a_key_without_an_address_is_an_error(fake: FakeKms, made: Any) -> None:
    fake.answers["CreateKey"] = lambda _asked: (200, made)
    with pytest.raises(BackendError):
        create(purpose="token")


def test_nothing_secret_is_written_to_the_log_at_any_level(
    fake: FakeKms, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    create(purpose="token")
    open_signer(URI, fake.key.public).sign(b"m")
    assert not any(secret in caplog.text for secret in (*AWS_CREDENTIALS.values(), "Signature"))


def documented_statements() -> list[dict[str, Any]]:
    """The statements of docs/keys/awskms.md: of the policy, then those of the creating role."""
    page = (ROOT / "docs/keys/awskms.md").read_text()
    policy, added = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    statements: list[dict[str, Any]] = json.loads(policy)["Statement"] + json.loads(f"[{added}]")
    return statements


@pytest.mark.parametrize("algorithm", awskms._SPECS)
def test_documented_policy_allows_what_is_sent_to_create_a_key(
    fake: FakeKms, settings: Settings, algorithm: str
) -> None:
    settings.KEY_ALGORITHM = algorithm
    with contextlib.suppress(BackendError):
        create(purpose="token")
    sent = fake.asked[0][1]
    assert sent.keys() == {"KeySpec", "KeyUsage", "Description", "Tags"}
    [making] = [each for each in documented_statements() if each["Action"] == "kms:CreateKey"][:1]
    condition = making["Condition"]
    assert making["Effect"] == "Allow"
    assert sent["KeySpec"] in condition["StringEquals"]["kms:KeySpec"]
    assert len(condition["StringEquals"]["kms:KeySpec"]) == len(awskms._SPECS)
    assert sent["KeyUsage"] == condition["StringEquals"]["kms:KeyUsage"]
    # AWS's defaults, since the request names neither.
    assert condition["StringEquals"]["kms:KeyOrigin"] == "AWS_KMS"
    assert condition["Bool"] == {"kms:MultiRegion": "false"}
    [tagging] = [each for each in documented_statements() if each["Action"] == "kms:TagResource"]
    tags = tagging["Condition"]["ForAllValues:StringEquals"]["aws:TagKeys"]
    assert [each["TagKey"] for each in sent["Tags"]] == tags


def test_documented_policy_denies_control_of_keys_it_creates() -> None:
    """The role chooses the key policy of a key that it creates: only a Deny overrides that."""
    denied = {
        action
        for each in documented_statements()
        if each["Effect"] == "Deny" and "Condition" not in each and each["Resource"] == "*"
        for action in each["Action"]
    }
    assert denied == {
        f"kms:{action}"
        for action in (
            "PutKeyPolicy", "CreateGrant", "ReplicateKey", "UpdatePrimaryRegion",
            "ImportKeyMaterial", "DisableKey", "ScheduleKeyDeletion", "UntagResource",
        )
    }  # fmt: skip
