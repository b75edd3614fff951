"""deploy/kubernetes, rendered: Kubernetes' schemas, settings, secrets, rights and the network."""

import json
import re
import subprocess
from functools import cache
from importlib.resources import files
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs
import pytest

from tests.forked import manage
from tests.kubernetes import (
    PROFILES,
    SECRETS,
    SITES,
    Object,
    container,
    environment,
    make_site,
    of_kind,
    pods,
    render,
    rendered,
    secret_files,
    selects,
)
from tests.live import ROOT
from tests.test_deploy_files import SERVICES, settings_read

pytestmark = pytest.mark.kubernetes

# Of this package only its files are used: its own check reads 1.5 MB for every object.
SCHEMAS = Path(str(files("kubernetes_validate"))) / "kubernetes-json-schema"
# The oldest that docs/kubernetes.md names, and the newest that has a schema.
VERSIONS = ("1.31", "1.37")
# Our own image.
OURS = ("init", "web", "verifier", "jobs")
# What boto3 reads.
OF_LIBRARIES = {"AWS_SHARED_CREDENTIALS_FILE"}
# An address of the internet, and for each network that is not part of it one.
INTERNET = "8.8.8.8"
INSIDE = (
    "0.0.0.0",
    "10.96.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.31.255.1",
    "192.0.0.8",
    "192.168.1.10",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "fd00::1",
)
DNS, POSTGRES, PGBOUNCER, HTTPS, REDIS, REDIS_BUS = 53, 5432, 6432, 443, 6379, 16379


@cache
def definitions(version: str) -> jsonschema_rs.Registry:
    text = (SCHEMAS / f"v{version}.0-local-strict/_definitions.json").read_text()
    told = json.loads(text)
    return jsonschema_rs.Registry([(told["$id"], told)])


@cache
def validator(version: str, name: str) -> Any:
    schema = json.loads((SCHEMAS / f"v{version}.0-local-strict/{name}.json").read_text())
    # References begin with /api/.
    schema["$id"] = "https://kubernetes.io/api/"
    return jsonschema_rs.validator_for(schema, registry=definitions(version))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*PROFILES, *SITES])
def test_every_object_is_what_kubernetes_accepts(name: str, version: str) -> None:
    for each in rendered(name):
        group, _, number = each["apiVersion"].rpartition("/")
        if each["kind"] == "PodMonitor":
            # Of the Prometheus Operator: no package has its schema.
            continue
        words = [each["kind"].lower(), group.partition(".")[0], number]
        schema = validator(version, "-".join(filter(None, words)))
        found = [f"{error.instance_path}: {error.message}" for error in schema.iter_errors(each)]
        assert found == [], each["metadata"]["name"]


def test_every_version_that_the_page_names_is_checked() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    assert f"You need Kubernetes {VERSIONS[0]} or newer" in page.replace("\n", " ")
    assert f"schemas of Kubernetes {VERSIONS[0]} and {VERSIONS[1]}" in page
    assert max(SCHEMAS.glob("*-local")).name == f"v{VERSIONS[1]}.0-local"


@pytest.mark.parametrize("name", SITES)
def test_no_two_objects_have_one_name_and_all_are_in_the_namespace(name: str) -> None:
    named = [(each["kind"], each["metadata"]["name"]) for each in rendered(name)]
    assert len(set(named)) == len(named)
    inside = [each for each in rendered(name) if each["kind"] != "Namespace"]
    assert {each["metadata"]["namespace"] for each in inside} == {"agentauth"}


@pytest.mark.parametrize("name", PROFILES)
def test_every_variable_of_a_pod_is_a_setting_that_is_read(name: str) -> None:
    known = settings_read().keys() | OF_LIBRARIES
    for process in OURS:
        # Of the owner, all but `init` have the name alone.
        given = environment(name, process).keys() - {"DATABASE_OWNER_URL"}
        assert given <= known, process


@pytest.mark.parametrize("name", PROFILES)
def test_commands_are_those_of_compose(name: str) -> None:
    for process in OURS:
        assert container(pods(name)[process])["command"] == SERVICES[process]["command"]


@pytest.mark.parametrize("name", PROFILES)
def test_a_secret_is_a_file_and_never_a_variable(name: str) -> None:
    for process in OURS:
        for variable, value in environment(name, process).items():
            word = re.search(r"PASSWORD|SECRET|TOKEN|KEY_FILE|CREDENTIALS|_URL_FILE", variable)
            is_path = value.startswith(("/run/", "/etc/agentauth/"))
            assert variable.endswith("_FILE") == is_path or variable == "VAULT_CACERT", variable
            assert is_path or not word, variable
            assert not re.search(r"://[^/@:]*:[^/@]+@", value), variable
    assert list(of_kind(name, "Secret")) == []


def mounted(name: str, process: str) -> dict[str, Object]:
    """By path in the container, the volume that is mounted there."""
    pod = pods(name)[process]
    volumes = {each["name"]: each for each in [*pod["spec"]["volumes"], {"name": "data"}]}
    mounts = {each["mountPath"]: each for each in container(pod)["volumeMounts"]}
    assert {each["name"] for each in mounts.values()} | {"data"} == volumes.keys()
    return {path: {**volumes[each["name"]], "mount": each} for path, each in mounts.items()}


def named_files(name: str, process: str) -> set[str]:
    """The files below SECRETS that the container's settings name."""
    if process in OURS:
        texts = [*environment(name, process).values()]
    else:
        own = {"pgbouncer": "agentauth-pgbouncer-", "redis": "redis-"}[process]
        texts = [
            json.dumps(each["data"])
            for each in of_kind(name, "ConfigMap")
            if each["metadata"]["name"].startswith(own)
        ]
    return {found for text in texts for found in re.findall(rf"{SECRETS}/(\w+)", text)}


@pytest.mark.parametrize("name", PROFILES)
def test_a_pod_has_one_secret_with_the_files_that_it_reads(name: str) -> None:
    for process in pods(name):
        volume = mounted(name, process)[str(SECRETS)]
        assert volume["secret"]["secretName"] == f"agentauth-{process}"
        # The settings refuse a file that every user can read.
        assert volume["secret"]["defaultMode"] == 0o440
        assert volume["mount"]["readOnly"] is True
        unused = {"redis_url"} if name == "small" else set()
        assert named_files(name, process) == secret_files()[process] - unused, process
        others = [path for path in mounted(name, process) if path != str(SECRETS)]
        assert [path for path in others if "secret" in mounted(name, process)[path]] == []


@pytest.mark.parametrize("name", SITES)
def test_the_example_makes_every_secret_with_its_files(name: str) -> None:
    made = {each["metadata"]["name"]: each for each in of_kind(name, "Secret")}
    for process, pod in pods(name).items():
        [volume] = [each for each in pod["spec"]["volumes"] if "secret" in each]
        keys = made.pop(volume["secret"]["secretName"])["data"].keys()
        unused = {"redis_url"} if name == "site of small" else set()
        assert keys == secret_files()[process] - unused, process
    assert made.keys() == {"agentauth-metrics"}
    assert made["agentauth-metrics"]["data"].keys() == {"metrics_token"}


def test_git_takes_no_secret_from_a_copied_folder(tmp_path: Path) -> None:
    make_site(tmp_path, "standard")
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    listed = ["git", "ls-files", "site"]
    done = subprocess.run(listed, cwd=tmp_path, check=True, capture_output=True, text=True)
    ours = {"site/.gitignore", "site/ca.pem", "site/kustomization.yaml", "site/settings.env"}
    assert set(done.stdout.split()) == ours


# --- The settings start -------------------------------------------------------------------------


def _values(site: Path) -> dict[str, str]:
    """A secret for each file; those that are random are as the page makes them."""
    made = {each.name: each.read_text() for each in (site / "secrets").iterdir()}
    roles = {
        "database_owner_url": "owner",
        "database_url": "serving",
        "database_web_url": "serving",
        "database_verifier_url": "verifier",
    }
    urls = {
        file: f"postgres://agentauth_{role}:word@127.0.0.1:9/agentauth"
        for file, role in roles.items()
    }
    return made | urls | {"redis_url": "redis://:word@127.0.0.1:9"}


# Of `standard`, tests/flows/test_compose.py starts the others.
@pytest.mark.parametrize(("name", "process"), [("small", "web"), ("standard", "init")])
def test_settings_start_with_the_variables_and_files_of_a_pod(
    name: str, process: str, tmp_path: Path
) -> None:
    """As in the pod, up to the first connection."""
    folder = tmp_path / "files"
    folder.mkdir()
    for file, value in _values(make_site(tmp_path / "kubernetes", name)).items():
        (folder / file).write_text(value)
        (folder / file).chmod(0o640)
    told = environment(name, process)
    env = {key: value.replace(str(SECRETS), str(folder)) for key, value in told.items()}
    env |= {"VAR_DIR": str(tmp_path)}
    command = container(pods(name)[process])["command"]
    done = manage(*(command[2:] if process == "init" else ["check"]), env=env)
    if process == "init":
        assert "The database does not accept the owner" in done.stderr, done.stderr
    else:
        assert done.returncode == 0, done.stderr


# --- Rights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_pods_meet_the_restricted_pod_security_standard(name: str) -> None:
    [user] = re.findall(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for process, pod in pods(name).items():
        spec = pod["spec"]
        # Of Redis, those of its image.
        uid, gid = (999, 1000) if process == "redis" else (int(user), int(user))
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": uid,
            "runAsGroup": gid,
            "fsGroup": gid,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
        assert [each for each in spec["volumes"] if "hostPath" in each] == []
        assert spec["enableServiceLinks"] is False, process
        for told in spec["containers"]:
            assert told["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            # Without a limit of memory, a leak would end its neighbours.
            assert told["resources"]["requests"].keys() == {"cpu", "memory"}
            assert told["resources"]["limits"].keys() == {"memory"}


@pytest.mark.parametrize("name", PROFILES)
def test_no_pod_has_a_token_for_the_kubernetes_api(name: str) -> None:
    accounts = {each["metadata"]["name"]: each for each in of_kind(name, "ServiceAccount")}
    for process, pod in pods(name).items():
        account = accounts.pop(pod["spec"]["serviceAccountName"])
        assert account["metadata"]["name"] == f"agentauth-{process}"
        assert account["automountServiceAccountToken"] is False
        assert pod["spec"]["automountServiceAccountToken"] is False
        tokens = [
            source["serviceAccountToken"]["audience"]
            for volume in pod["spec"]["volumes"]
            for source in volume.get("projected", {}).get("sources", [])
        ]
        assert tokens == (["vault"] if process in {"init", "web", "jobs"} else [])
    assert accounts == {}
    assert list(of_kind(name, "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")) == []


# --- Network ------------------------------------------------------------------------------------


def port_of(name: str, process: str) -> int:
    """The port at which the container answers, as its command or its settings say too."""
    told = container(pods(name)[process])
    number = int(told["ports"][0]["containerPort"])
    if process in OURS:
        bind = environment(name, process).get("OPERATIONS_BIND", "")
        assert re.findall(r"0\.0\.0\.0:(\d+)", " ".join([*told["command"], bind])) == [str(number)]
    return number


def needed(name: str, process: str) -> set[int]:
    """The ports that the process connects to, by what its settings name."""
    if process not in OURS:
        return {DNS} | {"pgbouncer": {POSTGRES}, "redis": {REDIS, REDIS_BUS}}[process]
    told = environment(name, process)
    pooled = process == "web" and name != "small"
    found = {DNS, PGBOUNCER if pooled else POSTGRES}
    if "REDIS_URL_FILE" in told:
        found.add(REDIS)
    if "VAULT_KUBERNETES_TOKEN_FILE" in told:
        found.add(urlsplit(told["VAULT_ADDR"]).port or HTTPS)
    if "AWS_SHARED_CREDENTIALS_FILE" in told:
        found.add(HTTPS)
    if "EMAIL_HOST_PASSWORD_FILE" in told:
        found.add(int(told.get("EMAIL_PORT", "587")))
    return found


def policies(name: str, process: str, direction: str) -> list[Object]:
    """The rules that apply to the pods of that kind, each with the name of its policy."""
    labels = pods(name)[process]["metadata"]["labels"]
    return [
        {**rule, "name": each["metadata"]["name"]}
        for each in of_kind(name, "NetworkPolicy")
        if selects(each["spec"]["podSelector"], labels)
        for rule in each["spec"].get(direction, [])
    ]


@pytest.mark.parametrize("name", PROFILES)
def test_a_pod_reaches_what_its_settings_name_and_no_more(name: str) -> None:
    [closed] = [
        each["spec"]
        for each in of_kind(name, "NetworkPolicy")
        if each["metadata"]["name"] == "default-deny"
    ]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for process in pods(name):
        rules = policies(name, process, "egress")
        assert all(rule.get("ports") for rule in rules)
        open_to = {port["port"] for rule in rules for port in rule["ports"]}
        assert open_to == needed(name, process), process


@pytest.mark.parametrize("name", PROFILES)
def test_a_pod_is_reached_by_its_callers_alone(name: str) -> None:
    callers = {
        "web": {"from-ingress", "from-prometheus"},
        "verifier": {"from-ingress", "from-prometheus"},
        "jobs": {"from-prometheus"},
        "init": set(),
        "pgbouncer": {"from-web"},
        "redis": {"redis"},
    }
    for process in pods(name):
        rules = policies(name, process, "ingress")
        assert {rule["name"] for rule in rules} == callers[process]
        assert all(rule["from"] for rule in rules)
        ports = {port["port"] for rule in rules for port in rule["ports"]}
        if process == "redis":
            assert ports == {REDIS, REDIS_BUS}
        elif rules:
            assert len(ports) == 1
            assert {"http": port_of(name, process)}.get(*ports, *ports) == port_of(name, process)


def allows(rule: Object, address: IPv4Address | IPv6Address, port: int) -> bool:
    """Whether the rule allows that address, which belongs to no pod."""
    blocks = [to["ipBlock"] for to in rule.get("to", []) if "ipBlock" in to]
    return any(each["port"] == port for each in rule["ports"]) and (
        "to" not in rule
        or any(
            address in ip_network(block["cidr"])
            and not any(address in ip_network(each) for each in block.get("except", []))
            for block in blocks
        )
    )


def reached(name: str, process: str, port: int) -> set[str]:
    """Which of some addresses the union of all policies lets the pods of that kind reach."""
    rules = policies(name, process, "egress")
    return {
        text
        for text in [INTERNET, *INSIDE]
        if any(allows(rule, ip_address(text), port) for rule in rules)
    }


@pytest.mark.parametrize("name", [*PROFILES, *SITES])
def test_no_policy_opens_https_at_a_private_address(name: str) -> None:
    """People type addresses that `jobs` calls. What any policy allows is allowed."""
    for process in pods(name):
        uses_https = process in {"web", "jobs", "init"}
        assert reached(name, process, HTTPS) == ({INTERNET} if uses_https else set()), process


def test_a_bucket_at_a_private_address_is_one_patch_of_the_example(tmp_path: Path) -> None:
    site = make_site(tmp_path, "standard")
    file = site / "kustomization.yaml"
    before, found, patches = file.read_text().partition("\npatches:\n")
    # All lines of a patch, and no comment.
    ours = re.sub(r"^  # ((?:  )?(?:- target|  ).*)$", r"  \1", patches, flags=re.MULTILINE)
    assert ours.count("- target: ") == patches.count("- target: ") == 6
    file.write_text(before + found + ours)
    rules = {
        each["metadata"]["name"]: each["spec"]["egress"][0]["to"]
        for each in render(site)
        if each["metadata"]["name"] in {"to-store", "to-internet"}
    }
    assert rules["to-store"] == [{"ipBlock": {"cidr": "10.0.5.0/24"}}]
    assert "203.0.113.0/24" in rules["to-internet"][0]["ipBlock"]["except"]
