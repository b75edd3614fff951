"""The login at Vault that docs/kubernetes.md sets up, by its own commands, on a real server."""

import os
import sys
from pathlib import Path
from typing import Any

import hvac
import pytest

from tests import kubernetes, openbao


@pytest.mark.kubernetes
def test_accounts_of_pods_that_sign_may_log_in_and_no_others(
    openbao_url: str, tmp_path: Path
) -> None:
    [commands] = kubernetes.blocks(kubernetes.section("Vault"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {"PATH": path, "BAO_ADDR": openbao_url, "BAO_TOKEN": openbao.ROOT_TOKEN}
    kubernetes.run_shell(commands, tmp_path, **given)
    root: Any = hvac.Client(url=openbao_url, token=openbao.ROOT_TOKEN)
    role = root.read("auth/kubernetes/role/agentauth")["data"]
    accounts, audiences = set(), set()
    for pod in kubernetes.pods("standard").values():
        for volume in pod["spec"]["volumes"]:
            for source in volume.get("projected", {}).get("sources", []):
                accounts.add(pod["spec"]["serviceAccountName"])
                audiences.add(source["serviceAccountToken"]["audience"])
    assert set(role["bound_service_account_names"]) == accounts
    assert role["bound_service_account_namespaces"] == ["agentauth"]
    assert {role["audience"]} == audiences
    assert kubernetes.environment("standard", "web")["VAULT_KUBERNETES_ROLE"] == "agentauth"
