"""JSON input and output: how much of a body is read; shortcuts give the same result as DRF."""

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.test import RequestFactory
from rest_framework.exceptions import NotAcceptable
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import BaseParser, FormParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.drf_json import MAX_BODY_BYTES, Negotiation, StrictJSONParser
from agentauth.protocol.errors import EncodingError
from registry.api.base_view import NativeView
from verifier.json_accept_check import takes_json


def body(size: int) -> io.BytesIO:
    return io.BytesIO(b'{"name": "' + b"x" * (size - 12) + b'"}')


def test_a_body_is_64_kb_at_most_unless_its_view_takes_more() -> None:
    parser = StrictJSONParser()
    assert parser.parse(body(MAX_BODY_BYTES))
    with pytest.raises(EncodingError):
        parser.parse(body(MAX_BODY_BYTES + 1))
    batch = {"view": SimpleNamespace(max_body_bytes=100_000)}
    assert parser.parse(body(100_000), parser_context=batch)
    with pytest.raises(EncodingError):
        parser.parse(body(100_001), parser_context=batch)


@pytest.mark.parametrize(
    "accept",
    [
        None, "", "*/*", "application/json", "application/*", "*/*;q=0.1", "text/html, */*",
        "application/json; indent=2", "APPLICATION/JSON", "text/html", "application/jsonx",
        "application/json, text/html",
    ],
)  # fmt: skip
def test_accept_means_what_it_means_to_drf(accept: str | None) -> None:
    def chosen(negotiation: DefaultContentNegotiation) -> str | None:
        headers = {} if accept is None else {"Accept": accept}
        request = Request(RequestFactory().get("/v1/agents/me", headers=headers))
        try:
            return str(negotiation.select_renderer(request, [JSONRenderer()])[1])
        except NotAcceptable:
            return None

    assert chosen(Negotiation()) == chosen(DefaultContentNegotiation())


@pytest.mark.parametrize(
    "accept",
    [
        "application/json;q=0", "application/json; Q=0.000, */*", "*/*;q=0",
        "text/html, */*; q=0.0", "application/*;q=0, */*", "application/json, application/json;q=0",
    ],
)  # fmt: skip
def test_json_that_accept_refuses_is_not_served(accept: str) -> None:
    request = Request(RequestFactory().get("/v1/agents/me", headers={"Accept": accept}))
    with pytest.raises(NotAcceptable):
        Negotiation().select_renderer(request, [JSONRenderer()])


@pytest.mark.parametrize(
    "accept",
    [
        "text/html;q=0, */*",
        "application/json;q=0.01",
        "*/*;q=0, application/json",
        ",, application/json,",
    ],
)
def test_json_is_served_where_accept_leaves_room_for_it(accept: str) -> None:
    request = Request(RequestFactory().get("/v1/agents/me", headers={"Accept": accept}))
    # The view accepts whatever the lean endpoint accepts.
    assert takes_json(accept.encode())
    assert Negotiation().select_renderer(request, [JSONRenderer()])[1]


@pytest.mark.parametrize("parser", [StrictJSONParser(), FormParser()])
@pytest.mark.parametrize("charset", ["iso-8859-1", '"utf-16"', "UTF-7", "us-ascii", ""])
def test_a_body_in_another_charset_has_no_parser(parser: BaseParser, charset: str) -> None:
    sent = f"{parser.media_type}; charset={charset}"
    request = Request(RequestFactory().post("/v1/tokens", "{}", content_type=sent))
    assert Negotiation().select_parser(request, [parser]) is None


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"'])
def test_a_body_that_names_utf_8_is_read(charset: str) -> None:
    sent = f"application/json; charset={charset}"
    request = Request(RequestFactory().post("/v1/tokens", "{}", content_type=sent))
    parser = StrictJSONParser()
    assert Negotiation().select_parser(request, [parser]) is parser


@pytest.mark.parametrize("parser", [StrictJSONParser(), FormParser()])
@pytest.mark.parametrize(
    "sent",
    [
        "application/json", "application/json; charset=utf-8", "application/jsonx", "text/plain",
        "", "*/*", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
    ],
)  # fmt: skip
def test_a_body_s_type_means_what_it_means_to_drf(parser: BaseParser, sent: str) -> None:
    request = Request(RequestFactory().post("/v1/tokens", "{}", content_type=sent))
    assert Negotiation().select_parser(
        request, [parser]
    ) is DefaultContentNegotiation().select_parser(request, [parser])


@pytest.mark.parametrize("media_type", ["application/json", "application/json; indent=2"])
def test_an_answer_is_what_drf_s_response_would_be(media_type: str) -> None:
    data = {"grant_id": "\u2028 <é>", "expires_in": 60, "more": [None, True]}
    request = Request(RequestFactory().post("/v1/tokens"))
    request.accepted_renderer, request.accepted_media_type = JSONRenderer(), media_type
    view = NativeView()
    view.request = request
    ours, theirs = view.answer(data, status=201), cast("Any", Response(data, status=201))
    theirs.accepted_renderer, theirs.accepted_media_type = JSONRenderer(), media_type
    theirs.renderer_context = {}
    assert ours.serialize() == theirs.render().serialize()
