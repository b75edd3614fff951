"""The WSGI entry reads every request, even with a bad charset, and loads only what it needs."""

import io
import os
import subprocess
import sys

import pytest

from agentauth.wsgi import application


@pytest.mark.parametrize(
    "charset", ["hex", "undefined", "punycode", "rot13", "utf-16", "no-such", "é"]
)
def test_DJ_8_a_charset_that_is_none_for_text_fails_nothing(charset: str) -> None:
    """Before any middleware: a failure here is a bare 500, without our headers or an event."""
    request = application.request_class(
        {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/sign-out/",
            "QUERY_STRING": "next=/%C3%A9/",
            "CONTENT_TYPE": f"application/x-www-form-urlencoded; charset={charset}",
            "CONTENT_LENGTH": "7",
            "wsgi.input": io.BytesIO(b"a=%C3%A9"),
        }
    )
    assert request.GET["next"] == "/é/"
    assert "a" in request.POST
    assert request.content_type == "application/x-www-form-urlencoded"


@pytest.mark.django_db
def test_an_answer_to_head_has_the_length_of_the_other_and_no_body() -> None:
    """The server would drop a body here, and log a warning each time."""

    def asked(method: str) -> tuple[str, str, bytes]:
        told: list[tuple[str, dict[str, str]]] = []
        environ: dict[str, object] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": "/health/live",
            "SERVER_NAME": "localhost",
        }
        environ |= {"SERVER_PORT": "8000", "wsgi.input": io.BytesIO(), "wsgi.url_scheme": "http"}
        answer = application(environ, lambda status, lines, *_: told.append((status, dict(lines))))
        [(status, lines)] = told
        return status, lines["Content-Length"], b"".join(answer)

    status, length, body = asked("GET")
    assert int(length) == len(body) > 0
    assert asked("HEAD") == (status, length, b"")


def test_no_server_loads_what_only_workers_and_other_systems_need() -> None:
    """Otherwise each command and server would take a third longer to start."""
    late = ["celery", "httpx", "boto3", "hvac", "google.cloud.kms_v1", "pyarrow", "agentauth.sdk"]
    # redis-py imports OpenTelemetry's metrics by itself, where that is installed.
    late.append("agentauth.observability.traced_calls")
    program = (
        "import sys, agentauth.server.verifier_application; "
        f"print([name for name in {late} if name in sys.modules])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"
