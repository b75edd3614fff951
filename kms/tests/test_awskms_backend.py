"""The `awskms:` backend on a real server of its API: key kinds and states, URIs, credentials."""

import threading
from typing import Any

import boto3
import pytest
from pytest_django.fixtures import Settings

from kms.backends import BackendError, BusyError, awskms, create, open_signer, public_key
from kms.tests.conftest import AWS_CREDENTIALS

UUID = "0192f1c8-0000-4000-8000-000000000001"
HOME = "arn:aws:kms:eu-central-1:000000000000:key/"


@pytest.fixture
def operator(aws_kms: str) -> Any:
    """A client with all rights."""
    client = boto3.session.Session().client("kms", endpoint_url=aws_kms, region_name="eu-central-1")
    yield client
    client.close()


def made(operator: Any, **kind: Any) -> str:
    return f"awskms:{operator.create_key(**kind)['KeyMetadata']['Arn']}"


@pytest.mark.parametrize(
    ("alg", "spec"), [("EdDSA", "ECC_NIST_EDWARDS25519"), ("ES256", "ECC_NIST_P256")]
)
def test_a_key_is_made_of_the_kind_that_settings_name_and_says_what_for(
    operator: Any, settings: Settings, alg: str, spec: str
) -> None:
    settings.KEY_ALGORITHM = alg
    uri, public = create(purpose="token")
    assert uri.startswith(f"awskms:{HOME}")
    found = operator.describe_key(KeyId=uri.rpartition("/")[2])["KeyMetadata"]
    assert (found["KeySpec"], found["KeyUsage"], found["MultiRegion"]) == (
        spec,
        "SIGN_VERIFY",
        False,
    )
    assert found["Description"] == "agentauth: signs for the purpose token"
    tags = operator.list_resource_tags(KeyId=found["KeyId"])["Tags"]
    assert tags == [{"TagKey": "agentauth", "TagValue": "token"}]
    for message in (b"m", b"m" * 4096):
        public.verify(message, open_signer(uri, public).sign(message), alg=alg)


def test_a_receipt_may_be_longer_than_Ed25519_signs_so_its_key_is_P256(aws_kms: str) -> None:
    uri, public = create(purpose="receipt")
    assert public.alg == "ES256"
    message = b"m" * 60_000
    public.verify(message, open_signer(uri, public).sign(message), alg="ES256")


@pytest.mark.parametrize("region", ["eu-central-1", "ap-southeast-2"])
def test_the_region_is_the_address_s_own_wherever_new_keys_are_made(
    aws_kms: str, settings: Settings, region: str
) -> None:
    settings.KEY_BACKEND = f"awskms:{region}"
    uri, public = create(purpose="token")
    assert uri.split(":")[4] == region
    settings.KEY_BACKEND = "awskms:sa-east-1"
    public.verify(b"m", open_signer(uri, public).sign(b"m"), alg="EdDSA")


def test_a_key_of_several_regions_signs_in_the_one_its_address_names(operator: Any) -> None:
    uri = made(operator, KeySpec="ECC_NIST_EDWARDS25519", KeyUsage="SIGN_VERIFY", MultiRegion=True)
    name = uri.rpartition("/")[2]
    assert name.startswith("mrk-")
    public = public_key(uri)
    public.verify(b"m", open_signer(uri, public).sign(b"m"), alg="EdDSA")
    with pytest.raises(BackendError, match="no such key"):
        public_key(uri.replace("eu-central-1", "eu-west-1"))


@pytest.mark.parametrize(
    "place", ["", "eu", "eu-central", "EU-central-1", "eu-central-1\n", "a.b", "x" * 80]
)
def test_backend_place_must_be_an_aws_region(aws: Any, settings: Settings, place: str) -> None:
    settings.KEY_BACKEND = f"awskms:{place}"
    with pytest.raises(BackendError, match="must name a region"):
        create(purpose="token")


@pytest.mark.parametrize(
    "address",
    [
        "alias/agentauth",
        UUID,
        HOME,
        f"{HOME}alias/agentauth",
        f"{HOME}{UUID[:-1]}g",
        f"{HOME}{UUID.upper()}",
        f"{HOME}{UUID}\n",
        f"{HOME}{UUID}/",
        f"{HOME}{UUID} ",
        f"{HOME}mrk-{UUID}",
        f"{HOME}mrk-{'0' * 31}",
        f"arn:aws:kms:eu-central-1:000000000000:alias/{UUID}",
        f"arn:aws:kms::000000000000:key/{UUID}",
        f"arn:aws:kms:eu-central-1:1:key/{UUID}",
        f"arn:aws:kms:eu-central-1.example.org:000000000000:key/{UUID}",
        f"arn:aws:kms:eu-central-1/@example.org:000000000000:key/{UUID}",
        f"arn:aws:s3:eu-central-1:000000000000:key/{UUID}",
        f"arn:aws-made-up:kms:eu-central-1:000000000000:key/{UUID}",
    ],
)
def test_JK_20_address_must_be_the_ARN_of_a_key(aws: Any, address: str) -> None:
    with pytest.raises(BackendError, match="not the address"):
        public_key(f"awskms:{address}")


@pytest.mark.parametrize(
    "kind",
    [
        {"KeySpec": "SYMMETRIC_DEFAULT"},
        {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"},
        {"KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"},
        {"KeySpec": "ECC_NIST_P384", "KeyUsage": "SIGN_VERIFY"},
        {"KeySpec": "ECC_SECG_P256K1", "KeyUsage": "SIGN_VERIFY"},
        {"KeySpec": "ECC_NIST_P256", "KeyUsage": "KEY_AGREEMENT"},
    ],
    ids=lambda kind: kind["KeySpec"],
)
def test_a_key_of_another_kind_is_refused(operator: Any, kind: dict[str, Any]) -> None:
    with pytest.raises(
        BackendError, match=r"unsupported type|must be Ed25519|not for signing|no such key"
    ):
        public_key(made(operator, **kind))


@pytest.mark.parametrize(
    ("act", "state"),
    [
        (lambda operator, name: operator.disable_key(KeyId=name), "the key is disabled"),
        (
            lambda operator, name: operator.schedule_key_deletion(
                KeyId=name, PendingWindowInDays=7
            ),
            "the key will be deleted",
        ),
    ],
    ids=["disabled", "to-be-deleted"],
)
def test_KM_4_removed_key_is_reported_and_signs_again_once_restored(
    operator: Any, act: Any, state: str
) -> None:
    uri, public = create(purpose="token")
    name = uri.rpartition("/")[2]
    signing = open_signer(uri, public)
    act(operator, name)
    with pytest.raises(BackendError, match=state) as refused:
        signing.sign(b"m")
    assert not isinstance(refused.value, BusyError)
    # The error names the key so that an operator finds it, but not the account.
    assert name in str(refused.value)
    assert "000000000000" not in str(refused.value)
    if state == "the key will be deleted":
        operator.cancel_key_deletion(KeyId=name)
    operator.enable_key(KeyId=name)
    public.verify(b"m", signing.sign(b"m"), alg="EdDSA")


def test_KM_14_missing_credentials_are_an_error_until_they_appear(
    aws: pytest.MonkeyPatch, aws_kms: str
) -> None:
    uri, public = create(purpose="token")
    aws.setattr(awskms, "_clients", {})
    for name in AWS_CREDENTIALS:
        aws.delenv(name)
    signing = open_signer(uri, public)
    for _ in range(2):
        with pytest.raises(BackendError, match="no credentials"):
            signing.sign(b"m")
    for name, value in AWS_CREDENTIALS.items():
        aws.setenv(name, value)
    # Credentials are not looked up again so soon; calls are refused at once meanwhile.
    with pytest.raises(BackendError, match="no credentials"):
        signing.sign(b"m")
    aws.setattr(awskms, "_CREDENTIALS_SECONDS", 0.0)
    with pytest.raises(BackendError, match="no credentials"):
        signing.sign(b"m")
    public.verify(b"m", signing.sign(b"m"), alg="EdDSA")


@pytest.mark.parametrize("endpoint", ["http://kms.example.org", "http://127.0.0.1.example.org:1"])
def test_SS_4_an_endpoint_in_clear_beyond_this_host_is_refused(
    aws: pytest.MonkeyPatch, endpoint: str
) -> None:
    aws.setenv("AWS_ENDPOINT_URL_KMS", endpoint)
    with pytest.raises(BackendError, match="https"):
        create(purpose="token")


def test_threads_that_come_at_once_share_one_client(aws: pytest.MonkeyPatch, aws_kms: str) -> None:
    uri, public = create(purpose="token")
    aws.setattr(awskms, "_clients", {})
    new, held = awskms._new_client, awskms.AwskmsBackend().open(uri)
    count: list[str] = []

    def counted(region: str, read_seconds: float) -> Any:
        count.append(region)
        return new(region, read_seconds)

    aws.setattr(awskms, "_new_client", counted)
    signatures: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: signatures.append(held.sign(b"m", "EdDSA")))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(signatures) == 16
    assert count == ["eu-central-1"]
    for signature in signatures:
        public.verify(b"m", signature, alg="EdDSA")
