"""docs/integrations.md: each block runs as printed, and the table is the one of the suite."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from agentauth.integrations import django_decorators as guard
from agentauth.integrations import fastapi, starlette
from agentauth.integrations.asgi import Receive, Scope, Send
from agentauth.integrations.fastapi import needs
from agentauth.integrations.provider_settings import Provider
from agentauth.integrations.tests import table
from agentauth.integrations.tests.conformance import (
    Verify,
    served_by_asgi,
    served_by_wsgi,
    verifying,
    yes,
)
from tests.postgres import free_port

ROOT = Path(__file__).resolve().parents[3]
AUDIENCE = "https://api.example.com"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = dict(part.split("\n", 1) for part in ("\n" + table.PAGE.read_text()).split("\n## ")[1:])
BLOCKS = {title: BLOCK.findall(text) for title, text in SECTIONS.items()}
[ENVIRONMENT] = re.findall(
    r"^```\n(AGENTAUTH_.*?)^```$", table.PAGE.read_text(), re.MULTILINE | re.DOTALL
)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Verify]:
    """Verify, in the environment that the page prints."""
    with verifying() as made:
        printed = ENVIRONMENT.replace("https://registry.example.com", made.url)
        for line in printed.replace("…", "given").splitlines():
            monkeypatch.setenv(*line.split("=", 1))
        yield made


def run(code: str, **given: Any) -> ModuleType:
    """The block, as a module."""
    module = ModuleType("printed")
    module.__dict__.update(given)
    sys.modules["printed"] = module
    exec(compile(code, "docs/integrations.md", "exec"), module.__dict__)  # noqa: S102 — our own page
    return module


def follow(url: str, registry: Verify, *, is_open: bool = True) -> None:
    """What the page says of the site: the calendar is served for the agent alone."""
    headers = {"Host": "api.example.com"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
        signed = {"Authorization": "DPoP good", "DPoP": "a.b.c"}
        answer = client.get("/calendar/work", headers=signed)
        assert (answer.status_code, "for" in answer.text) == (200, True)
        [asked] = registry.asked
        assert asked["url"] == f"{AUDIENCE}/calendar/work"
        assert asked["action"] == {"type": "read", "resource": "calendar/work", "arguments": {}}
        assert client.get("/calendar/work").status_code == 401
        if is_open:
            assert client.get("/health").status_code in {200, 500}
        assert len(registry.asked) == 1


def test_every_block_of_the_page_is_run_here() -> None:
    ran = {
        "What a route requires": 1,
        "FastAPI": 1,
        "Starlette": 1,
        "Any ASGI application": 1,
        "Flask": 1,
        "Django": 2,
        "Django REST framework": 2,
        "Without a framework": 2,
    }
    assert {title: len(blocks) for title, blocks in BLOCKS.items() if blocks} == ran


def test_the_environment_of_the_page_names_the_service_provider(registry: Verify) -> None:
    assert Provider.from_environment() == Provider(registry.url, "given", "given", AUDIENCE)


def test_the_dependency_of_the_page_checks_a_route_of_fastapi(registry: Verify) -> None:
    [expression] = re.findall(r"`(dependencies=\[.+?\])`", SECTIONS["FastAPI"])
    module = run(BLOCKS["FastAPI"][0])
    given = vars(module) | {"Depends": Depends, "needs": needs}
    app: FastAPI = eval(f"FastAPI({expression})", given)  # noqa: S307 — our own page

    @app.get("/calendar/work")
    async def events(agent: fastapi.Agent) -> dict[str, str]:
        return {"for": agent.subject}

    fastapi.protect(app, Provider.from_environment())
    with served_by_asgi(app) as url, httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("/calendar/work").status_code == 401
        signed = {"Authorization": "DPoP good", "DPoP": "a.b.c"}
        assert client.get("/calendar/work", headers=signed).status_code == 200
    assert registry.asked[0]["action"]["resource"] == "calendar"


def test_the_open_mount_of_the_page_is_served_without_credentials(
    registry: Verify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "static").mkdir()
    (tmp_path / "static/a.txt").write_text("open")
    [expression] = re.findall(r"`(Mount\(.+?\))`\.", SECTIONS["Starlette"])
    names = {"Mount": Mount, "StaticFiles": StaticFiles, "unprotected": starlette.unprotected}
    closed = Mount("/closed", StaticFiles(directory="static"))
    app = Starlette(routes=[eval(expression, names), closed])  # noqa: S307 — our own page
    starlette.protect(app, Provider.from_environment())
    with served_by_asgi(app) as url, httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("/static/a.txt").text == "open"
        assert client.get("/closed/a.txt").status_code == 401


def test_the_requirements_of_the_page_are_valid() -> None:
    run(BLOCKS["What a route requires"][0])


def closing(app: Any) -> Any:
    """The application of the page knows no lifespan, in which its connections are closed."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
        await app._verifier.close()

    return application


@pytest.mark.parametrize("title", ["FastAPI", "Starlette", "Any ASGI application"])
def test_an_asgi_application_of_the_page_is_protected(registry: Verify, title: str) -> None:
    app = run(BLOCKS[title][0]).app
    with served_by_asgi(closing(app) if title == "Any ASGI application" else app) as url:
        follow(url, registry, is_open=title == "FastAPI")


def test_the_flask_application_of_the_page_is_protected(registry: Verify) -> None:
    with served_by_wsgi(run(BLOCKS["Flask"][0]).app) as url:
        follow(url, registry)


def test_gunicorn_as_printed_drops_the_header_that_changes_the_path(
    registry: Verify, tmp_path: Path
) -> None:
    """Without the option, the check answers 400 to the header."""
    [command] = re.findall(r"^```sh\n(gunicorn .*)\n```$", table.PAGE.read_text(), re.MULTILINE)
    port = free_port()
    (tmp_path / "module.py").write_text(BLOCKS["Flask"][0])
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    printed = command.replace(":9000", f":{port}")
    assert printed != command
    signed = {"Authorization": "DPoP good", "DPoP": "a.b.c", "SCRIPT_NAME": "/calendar"}
    with subprocess.Popen(
        ["bash", "-c", f"exec {printed}"], cwd=tmp_path, env=os.environ | env,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            answer = asked_once_up(f"http://127.0.0.1:{port}/calendar/work", signed)
        finally:
            process.terminate()
    assert (answer.status_code, registry.asked[0]["url"]) == (200, f"{AUDIENCE}/calendar/work")


def asked_once_up(url: str, headers: dict[str, str]) -> httpx.Response:
    """The first answer of a server that is starting."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return httpx.get(url, headers=headers, trust_env=False, timeout=30)
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def django_settings(registry: Verify) -> dict[str, Any]:
    printed = vars(run(BLOCKS["Django"][0]))
    settings = {name: value for name, value in printed.items() if name.isupper()}
    assert settings["AGENTAUTH"]["AUDIENCE"] == AUDIENCE
    settings["AGENTAUTH"] |= {"REGISTRY_URL": registry.url}
    return settings | {"ALLOWED_HOSTS": ["api.example.com"]}


def test_the_django_site_of_the_page_is_protected(registry: Verify) -> None:
    settings = django_settings(registry)
    del settings["INSTALLED_APPS"]
    given = settings["AGENTAUTH"]
    with override_settings(**settings, ROOT_URLCONF=run(BLOCKS["Django"][1])):
        with served_by_wsgi(WSGIHandler()) as url:
            follow(url, registry)
        guard._client(given["REGISTRY_URL"], given["CLIENT_ID"], given["CLIENT_SECRET"]).close()
        guard._client.cache_clear()


# REST framework reads its settings when it is imported, so they need a process of their own.
PROJECT = """
import json, sys
given = json.load(sys.stdin)
from django.conf import settings
settings.configure(ROOT_URLCONF="__main__", SECRET_KEY="x", **given["settings"])
import django
django.setup()
exec(given["views"])
from django.test import Client
signed = {"Authorization": "DPoP good", "DPoP": "a.b.c"}
client = Client(headers={"Host": "api.example.com"})
for headers in (signed, {}):
    answer = client.get("/calendar/work", headers=headers)
    print(answer.status_code, answer.text, answer.headers.get("Cache-Control"))
"""


def rest_site(registry: Verify, **others: Any) -> list[str]:
    """Status, text and Cache-Control of an agent's request, and of one without credentials."""
    rest, views = BLOCKS["Django REST framework"]
    settings = django_settings(registry) | {"REST_FRAMEWORK": run(rest).REST_FRAMEWORK} | others
    # Models that REST framework imports.
    settings["INSTALLED_APPS"] += ["django.contrib.contenttypes", "django.contrib.auth"]
    done = subprocess.run(
        [sys.executable, "-c", PROJECT],
        input=json.dumps({"settings": settings, "views": views}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_rest_framework_site_of_the_page_is_protected(registry: Verify) -> None:
    allowed, refused = rest_site(registry)
    assert allowed == '200 {"calendar":"work","for":"s"} private, no-store'
    assert refused.startswith('401 {"error": "invalid_token"')
    [asked] = registry.asked
    assert asked["action"]["resource"] == "calendar/work"


def test_rest_framework_without_the_middleware_lets_nothing_through(registry: Verify) -> None:
    assert [line[:3] for line in rest_site(registry, MIDDLEWARE=[])] == ["401", "401"]
    assert registry.asked == []


@contextmanager
def answering_batches() -> Iterator[Verify]:
    with verifying() as registry:
        registry.says = lambda asked: (
            {"results": [yes("a") for _ in asked["requests"]]} if "requests" in asked else yes("a")
        )
        yield registry


def test_the_clients_of_the_page_ask_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verify, "answer", lambda self, question: self.says(question))
    with answering_batches() as registry:
        given = {
            "registry_url": registry.url,
            "client_id": "id",
            "client_secret": "s",
            "token": "good",
            "proof": "a.b.c",
            "proofs": ["1.b.c", "2.b.c"],
        }
        one, many = BLOCKS["Without a framework"]
        module = run(one, **given)
        assert module.allowed.agent_id == "a"
        assert len(run(many, **vars(module)).allowed) == 2


def test_the_table_of_the_page_is_that_of_the_suite() -> None:
    """`python -m agentauth.integrations.tests.table` writes it."""
    assert table.PAGE.read_text() == table.page()
