"""One request as every integration reads it: exact header lines, the audience's URL, the raw
path.
"""

import pytest

from agentauth.integrations.incoming_request import (
    Incoming,
    encoded_path,
    question,
    request_url,
    wsgi_headers,
    wsgi_target,
)
from agentauth.integrations.refusals_and_caching import kept_private
from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidProofError,
    InvalidRequestError,
    InvalidTokenError,
)

AUDIENCE = "https://api.sp.example/v1"
TOKEN, PROOF = ("Authorization", "DPoP aaaa.bbbb.cccc"), ("dpop", "dddd.eeee.ffff")


def asked(*headers: tuple[str, str], target: str = "/v1/x") -> dict[str, object]:
    return question(Incoming("GET", target, headers), AUDIENCE)


def test_the_question_has_one_token_one_proof_and_the_audience_s_url() -> None:
    assert asked(
        TOKEN,
        PROOF,
        ("Host", "evil.example"),
        ("X-Forwarded-Host", "evil.example"),
        ("Forwarded", "host=evil.example;proto=http"),
        ("X-Forwarded-Prefix", "/evil"),
        ("X-Original-URL", "/evil"),
        ("Idempotency-Key", "k"),
        target="/v1/a%2Fb?x=1",
    ) == {
        "token": "aaaa.bbbb.cccc",
        "proof": "dddd.eeee.ffff",
        "method": "GET",
        "url": "https://api.sp.example/v1/a%2Fb",
        "idempotency_key": "k",
    }


REFUSED: dict[str, tuple[list[tuple[str, str]], type[AgentAuthError]]] = {
    "nothing": ([], InvalidTokenError),
    "bearer": ([("Authorization", "Bearer a.b.c"), PROOF], InvalidTokenError),
    "two tokens": ([TOKEN, ("authorization", "DPoP x.y.z"), PROOF], InvalidRequestError),
    "the token twice": ([TOKEN, TOKEN, PROOF], InvalidRequestError),
    "no proof": ([TOKEN], InvalidProofError),
    "two proofs": ([TOKEN, PROOF, ("DPoP", "x.y.z")], InvalidProofError),
    "joined proofs": ([TOKEN, ("DPoP", "a.b.c, d.e.f")], InvalidProofError),
    "two keys": (
        [TOKEN, PROOF, ("Idempotency-Key", "a"), ("idempotency-key", "a")],
        InvalidRequestError,
    ),
    "an empty key": ([TOKEN, PROOF, ("Idempotency-Key", "")], InvalidRequestError),
    "a long key": ([TOKEN, PROOF, ("Idempotency-Key", "k" * 129)], InvalidRequestError),
    "a WebSocket": ([TOKEN, PROOF, ("upgrade", "h2c, WebSocket")], InvalidRequestError),
}


@pytest.mark.parametrize(("headers", "kind"), REFUSED.values(), ids=REFUSED)
def test_doubled_or_missing_headers_make_no_question(
    headers: list[tuple[str, str]], kind: type[AgentAuthError]
) -> None:
    with pytest.raises(kind):
        asked(*headers)


def test_another_upgrade_may_be_ignored() -> None:
    assert asked(TOKEN, PROOF, ("Upgrade", "h2c"))["method"] == "GET"


@pytest.mark.parametrize("target", ["https://evil.example/v1/x", "*", "", "?x"])
def test_a_target_that_is_no_path_makes_no_question(target: str) -> None:
    with pytest.raises(InvalidRequestError, match="must be a path"):
        asked(TOKEN, PROOF, target=target)


def test_a_wsgi_target_is_the_one_received() -> None:
    decoded = {"SCRIPT_NAME": "/v1", "PATH_INFO": "/a/b", "QUERY_STRING": "x=1"}
    for name in ("RAW_URI", "REQUEST_URI"):
        assert wsgi_target({**decoded, name: "/v1/a%2Fb?x=1"}) == "/v1/a%2Fb?x=1"
    assert wsgi_target(decoded) == "/v1/a/b?x=1"
    bytes_of = "/v1/ü%".encode().decode("latin-1")
    assert wsgi_target({"PATH_INFO": bytes_of}) == "/v1/%C3%BC%25"
    assert encoded_path("/a b/~c") == "/a%20b/~c"


def test_wsgi_headers_have_their_names_again() -> None:
    environ = {
        "HTTP_IDEMPOTENCY_KEY": "k",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": "2",
        "REQUEST_METHOD": "GET",
    }
    assert wsgi_headers(environ) == [
        ("IDEMPOTENCY-KEY", "k"),
        ("Content-Type", "application/json"),
        ("Content-Length", "2"),
    ]


@pytest.mark.parametrize(
    ("stated", "sent"),
    [
        ("", "private, no-store"),
        ("max-age=60", "max-age=60, private"),
        ("no-cache", "no-cache, private"),
        ("private, max-age=60", "private, max-age=60"),
        ("Public, max-age=60", "Public, max-age=60"),
        ("s-maxage=5", "s-maxage=5"),
    ],
)
def test_a_protected_answer_is_private_unless_its_route_says_public(stated: str, sent: str) -> None:
    assert kept_private(stated) == sent


@pytest.mark.parametrize("target", ["/v1/x#y", "/v1/x?a=1#&a=2", "/open#/../closed", "#"])
def test_target_with_a_fragment_is_refused(target: str) -> None:
    """Servers differ on whether what follows belongs to the path or the query."""
    with pytest.raises(InvalidRequestError):
        request_url(AUDIENCE, target)
