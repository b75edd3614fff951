"""deploy/kubernetes, rendered: health, scale, routes, metrics, order, and the page's commands."""

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from django.core.management import get_commands, load_command_class
from django.urls import resolve

from agentauth.observability import health
from agentauth.observability.ops_listener import _VIEWS
from agentauth.server.gunicorn_settings import graceful_timeout
from tests.kubernetes import (
    FILES,
    PROFILES,
    SITES,
    blocks,
    container,
    environment,
    make_site,
    of_kind,
    pods,
    render,
    rendered,
    run_shell,
    section,
    selects,
)
from tests.live import ROOT
from tests.nginx import documented

pytestmark = pytest.mark.kubernetes

PAGE = (ROOT / "docs/kubernetes.md").read_text()


@pytest.mark.parametrize("name", PROFILES)
def test_a_probe_asks_an_address_that_the_process_answers(name: str) -> None:
    for process in ("web", "verifier", "jobs"):
        told = container(pods(name)[process])
        ports = {each["name"] for each in told["ports"]}
        views = {
            "startupProbe": health.live,
            # Asks no database: while PostgreSQL is away, no pod restarts.
            "livenessProbe": health.live,
            "readinessProbe": health.ready,
        }
        for probe, view in views.items():
            asked = told[probe]["httpGet"]
            assert asked["port"] in ports
            assert _VIEWS[asked["path"]] is view
            assert resolve(asked["path"]).func is view
        # The page says how long a pod that is not ready stays in its Service.
        ready = told["readinessProbe"]
        assert ready["periodSeconds"] * ready["failureThreshold"] == 30
        assert "For 30 s all pods stay in their Services" in PAGE


@pytest.mark.parametrize("name", PROFILES)
def test_a_server_has_the_time_to_end_what_it_began(name: str) -> None:
    for process in ("web", "verifier"):
        pod = pods(name)[process]
        command, seconds = container(pod)["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep"
        grace = pod["spec"]["terminationGracePeriodSeconds"]
        assert grace >= int(seconds) + graceful_timeout + 5
        assert f"waits {seconds} s" in PAGE
        assert f"for up to {graceful_timeout} s" in PAGE.replace("\n  ", " ")


@pytest.mark.parametrize("name", PROFILES)
def test_a_rollout_takes_no_pod_before_the_next_is_ready(name: str) -> None:
    for each in of_kind(name, "Deployment"):
        assert each["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("name", PROFILES)
def test_the_pods_that_a_selector_names_are_there(name: str) -> None:
    labels = {process: pod["metadata"]["labels"] for process, pod in pods(name).items()}
    for each in of_kind(name, "Deployment", "StatefulSet"):
        own = each["spec"]["template"]["metadata"]["labels"]
        assert selects(each["spec"]["selector"], own)
        assert own["process"] == each["metadata"]["labels"]["process"]
    for each in of_kind(name, "PodDisruptionBudget"):
        process = each["metadata"]["labels"]["process"]
        found = [one for one in labels if selects(each["spec"]["selector"], labels[one])]
        assert found == [process]
    for each in of_kind(name, "Service"):
        process = each["metadata"]["labels"]["process"]
        found = [one for one in labels if each["spec"]["selector"].items() <= labels[one].items()]
        assert found == [process]
        there = container(pods(name)[process])["ports"]
        for port, open_port in zip(each["spec"]["ports"], there, strict=True):
            told = (port["name"], port["port"])
            assert told == (open_port["name"], open_port["containerPort"])
    for process, pod in pods(name).items():
        for spread in pod["spec"].get("topologySpreadConstraints", []):
            assert selects(spread["labelSelector"], labels[process])
            # Those that a controller sets.
            own = {"pod-template-hash", "apps.kubernetes.io/pod-index"}
            assert set(spread.get("matchLabelKeys", [])) - own <= labels[process].keys()


def numbers(name: str, process: str) -> tuple[int, int]:
    """The fewest and the most pods of a kind."""
    [deployment] = [
        each
        for each in of_kind(name, "Deployment")
        if each["metadata"]["labels"]["process"] == process
    ]
    scaled = [
        each["spec"]
        for each in of_kind(name, "HorizontalPodAutoscaler")
        if each["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    ]
    replicas = deployment["spec"].get("replicas")
    if scaled:
        # A number there would undo the autoscaler's at each apply.
        assert replicas is None
        assert {"cpu"} <= container(pods(name)[process])["resources"]["requests"].keys()
        return scaled[0]["minReplicas"], scaled[0]["maxReplicas"]
    return replicas or 1, replicas or 1


def test_the_table_of_profiles_has_the_numbers_of_the_files() -> None:
    rows = re.findall(
        r"^\| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", section("Profiles"), re.MULTILINE
    )
    table = {row: cells for row, *cells in rows}
    told = {
        "web servers": "web",
        "verifiers": "verifier",
        "`jobs`": "jobs",
        "PgBouncer, for the web servers": "pgbouncer",
    }
    for row, process in told.items():
        for name, cell in zip(PROFILES, table[row], strict=True):
            found = [int(each) for each in re.findall(r"\d+", cell)]
            if process not in pods(name):
                assert cell == "none"
            else:
                assert (found[0], found[-1]) == numbers(name, process), (name, process)


@pytest.mark.parametrize("name", ["standard", "large"])
def test_a_drained_node_leaves_a_pod_of_each_kind(name: str) -> None:
    covered = {each["metadata"]["name"] for each in of_kind(name, "PodDisruptionBudget")}
    for each in of_kind(name, "Deployment"):
        assert each["metadata"]["name"] in covered
        assert numbers(name, each["metadata"]["labels"]["process"])[0] >= 2
    # With one pod, a budget would block the drain.
    assert list(of_kind("small", "PodDisruptionBudget")) == []


@pytest.mark.parametrize("name", SITES)
def test_the_ingress_routes_as_the_documented_nginx(name: str) -> None:
    [ingress] = of_kind(name, "Ingress")
    [rule] = ingress["spec"]["rules"]
    host = environment(name, "web")["PUBLIC_URL"].removeprefix("https://")
    assert (rule["host"], ingress["spec"]["tls"][0]["hosts"]) == (host, [host])
    routes = {
        (each["path"], each["pathType"]): each["backend"]["service"]["name"]
        for each in rule["http"]["paths"]
    }
    [paths] = re.findall(r"location ~ \^/v1/\(([\w|/]+)\)\$ \{", documented(web=8000))
    exact = {(f"/v1/{path}", "Exact"): "agentauth-verifier" for path in paths.split("|")}
    assert routes == exact | {("/", "Prefix"): "agentauth-web"}
    services = {each["metadata"]["name"]: each for each in of_kind(name, "Service")}
    for each in rule["http"]["paths"]:
        told = each["backend"]["service"]
        assert told["port"]["name"] in {
            one["name"] for one in services[told["name"]]["spec"]["ports"]
        }


def test_prometheus_gives_the_job_and_labels_of_the_other_configurations() -> None:
    [monitor] = of_kind("site of standard", "PodMonitor")
    spec = monitor["spec"]
    found = set()
    for pod in pods("site of standard").values():
        labels = pod["metadata"]["labels"]
        if selects(spec["selector"], labels):
            kept = {key: labels[key] for key in spec["podTargetLabels"]}
            found.add((labels[spec["jobLabel"]], *kept.items()))
            [endpoint] = spec["podMetricsEndpoints"]
            assert endpoint["port"] in {each["name"] for each in container(pod)["ports"]}
    [scraped] = yaml.safe_load((ROOT / "deploy/prometheus/compose.yml").read_text())[
        "scrape_configs"
    ]
    assert found == {
        (scraped["job_name"], *each["labels"].items()) for each in scraped["static_configs"]
    }
    secret = endpoint["authorization"]["credentials"]
    [made] = [
        each["data"]
        for each in of_kind("site of standard", "Secret")
        if each["metadata"]["name"] == secret["name"]
    ]
    assert secret["key"] in made


def test_pgbouncer_is_that_of_compose_with_tls() -> None:
    def lines(path: Path) -> set[str]:
        return {each for each in path.read_text().splitlines() if each and each[0] not in ";["}

    compose = lines(ROOT / "deploy/pgbouncer/pgbouncer.ini")
    ours = lines(FILES / "standard/pgbouncer.ini")
    assert sorted(compose - ours) == [
        "agentauth = host=postgres port=5432 dbname=agentauth",
        "auth_file = /run/secrets/pgbouncer_users",
        "max_client_conn = 200",
    ]
    assert sorted(ours - compose) == [
        "%include /run/secrets/agentauth/pgbouncer_databases",
        "auth_file = /run/secrets/agentauth/pgbouncer_users",
        "max_client_conn = 1000",
        "server_tls_ca_file = /etc/agentauth/ca.pem",
        "server_tls_sslmode = verify-full",
    ]
    # The most web servers that there may be, with a connection for each thread.
    assert numbers("large", "web")[1] * 2 * 16 <= 1000 * numbers("large", "pgbouncer")[0]


# --- The page's commands ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SITES)
def test_the_first_step_has_all_that_the_job_needs(name: str) -> None:
    first = {
        (each["kind"], each["metadata"]["name"])
        for each in rendered(name)
        if each["metadata"].get("labels", {}).get("step") == "first"
    }
    pod = pods(name)["init"]["spec"]
    [settings] = container(pods(name)["init"])["envFrom"]
    wanted = {
        ("Job", "agentauth-init"),
        ("Namespace", "agentauth"),
        ("ServiceAccount", pod["serviceAccountName"]),
        ("ConfigMap", settings["configMapRef"]["name"]),
    }
    for volume in pod["volumes"]:
        if "secret" in volume:
            wanted.add(("Secret", volume["secret"]["secretName"]))
        if "configMap" in volume:
            wanted.add(("ConfigMap", volume["configMap"]["name"]))
    assert wanted <= first
    # No process of the new code starts with it.
    assert {kind for kind, _ in first} & {"Deployment", "HorizontalPodAutoscaler"} == set()
    policies = {each["metadata"]["name"] for each in of_kind(name, "NetworkPolicy")}
    assert {there for kind, there in first if kind == "NetworkPolicy"} == policies


@pytest.mark.parametrize("name", SITES)
def test_the_second_step_replaces_one_kind_of_process(name: str) -> None:
    for process in ("jobs", "web", "verifier"):
        found = [
            each["kind"]
            for each in rendered(name)
            if each["metadata"].get("labels", {}).get("process") == process
        ]
        assert found.count("Deployment") == 1
        assert {"Job", "Ingress", "ConfigMap", "Secret"} & set(found) == set()


# Calls `kubectl` without a server, and notes what it said.
WRAPPER = """#!/bin/sh
printf '%s\\t' "$*" >> "$SAID"
{kubectl} --server=http://127.0.0.1:9 "$@" 2>&1 | tail -n 1 >> "$SAID"
"""


@pytest.mark.slow
def test_kubectl_knows_every_command_of_the_page(tmp_path: Path) -> None:
    make_site(tmp_path, "standard")
    shutil.copytree(ROOT / "deploy/prometheus", tmp_path / "deploy/prometheus")
    wrapper = tmp_path / "kubectl"
    wrapper.write_text(WRAPPER.format(kubectl=shutil.which("kubectl")))
    wrapper.chmod(0o755)
    said = tmp_path / "said"
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(said), "KUBECONFIG": "/dev/null"}
    for block in blocks(PAGE):
        if "kubectl" in block:
            run_shell(block, tmp_path, **env)
    for typed in re.findall(r"`(kubectl -n [^`]+)`", PAGE.replace("\n", " ")):
        run_shell(typed, tmp_path, **env)
    lines = said.read_text().splitlines()
    assert len(lines) >= 18
    # It has read the command and the files, and asks the server.
    assert [line for line in lines if "refused" not in line] == []
    assert {"--server" in line.partition("\t")[0] for line in lines} == {False}


def test_the_page_makes_a_rule_object_of_each_file_of_rules(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy/prometheus", tmp_path / "deploy/prometheus")
    [block] = blocks(section("Prometheus"))
    run_shell(block.partition("kubectl")[0], tmp_path)
    made = [each for each in yaml.safe_load_all((tmp_path / "rules.yaml").read_text()) if each]
    for each, file in zip(made, sorted((ROOT / "deploy/prometheus/rules").iterdir()), strict=True):
        assert (each["kind"], each["metadata"]["name"]) == (
            "PrometheusRule",
            f"agentauth-{file.stem}",
        )
        assert each["spec"] == yaml.safe_load(file.read_text())


def test_the_job_can_record_a_changed_setting_instead(tmp_path: Path) -> None:
    site = make_site(tmp_path, "standard")
    file = site / "kustomization.yaml"
    [patch] = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    told = yaml.safe_load(file.read_text())
    told["patches"] += yaml.safe_load(patch)
    file.write_text(yaml.safe_dump(told))
    [job] = [each for each in render(site) if each["kind"] == "Job"]
    _python, _manage, name, *options = container(job["spec"]["template"])["command"]
    command = load_command_class(get_commands()[name], name)
    parsed = command.create_parser("manage.py", name).parse_args(options)
    assert parsed.change == ["REDIS_URL"]


def test_pods_have_the_commands_that_the_page_runs_in_them() -> None:
    image = (ROOT / "Dockerfile").read_text()
    typed = re.findall(r"exec \S+ -- (\w+) (\w+)", PAGE)
    assert typed
    for program, command in typed:
        assert re.search(rf"/usr/local/bin/{program}\b", image)
        assert command in get_commands()
