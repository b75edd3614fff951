"""The external store, a bucket with Object Lock, deletes nothing the installed system put there."""

import pytest
from botocore.exceptions import ClientError

from tests import ministack
from tests.production.installation import BUCKET
from tests.production.registry import ProductionRegistry

pytestmark = pytest.mark.production


def test_AU_31_what_is_archived_is_locked_and_proves_the_log_alone(
    production: ProductionRegistry,
) -> None:
    # Everything signed, unless the jobs archived it first.
    production.manage("archive_audit")
    client = ministack.client(production.s3_url)
    versions = client.list_object_versions(Bucket=BUCKET, Prefix="agentauth/")["Versions"]
    assert {each["Key"].split("/")[1] for each in versions} >= {"checkpoints", "objects"}
    for each in versions[:3]:
        where = {"Bucket": BUCKET, "Key": each["Key"]}
        assert client.get_object_retention(**where)["Retention"]["Mode"] == "COMPLIANCE"
        with pytest.raises(ClientError):
            client.delete_object(**where, VersionId=each["VersionId"])
    alone = production.manage("verify_audit", "--archive", production.env["AUDIT_STORE"])
    assert (alone["ok"], alone["tree_size"] > 0) == (True, True), alone
