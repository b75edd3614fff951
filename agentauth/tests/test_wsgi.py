"""The WSGI entry reads every request, also one that names a charset no text has."""

import io

import pytest

from agentauth.wsgi import application


@pytest.mark.parametrize("charset", ["hex", "undefined", "punycode", "rot13", "utf-16", "no-such", "é"])
def test_DJ_8_a_charset_that_is_none_for_text_fails_nothing(charset: str) -> None:
    """Before any middleware: a failure here is the server's bare 500, with no headers and no event."""
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
