"""One incoming request as every integration reads it, and the question to verify that it makes.

No framework and no I/O. The URL is the configured audience's, never one from `Host` or from a
forwarded header, and the path is the one received, before decoding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

from agentauth.protocol.dpop import authorization_header, single_header
from agentauth.protocol.encoding import MAX_BODY_BYTES, read_object
from agentauth.protocol.errors import EncodingError, InvalidRequestError

MAX_IDEMPOTENCY_KEY: Final = 128
# A longer Content-Length is too long, whatever it says.
_LENGTH_DIGITS: Final = 9
# Also the reason of a WebSocket's close, which may have 123 bytes.
WEBSOCKET: Final = (
    "WebSockets are not supported, since a proof is for one request: send a plain HTTP request."
)


def _no_body() -> bytes:
    return b""


def _none_converted() -> Mapping[str, Sequence[object]]:
    return {}


@dataclass(frozen=True, slots=True)
class Incoming:
    """One HTTP request.

    `target` is the path and query as received, not decoded. `headers` has one entry per header
    line, with a name in any case; the repr leaves them out, since they hold token and proof.
    `parameters` are those of the route's path, decoded, and converted if the router does so.
    `converted` returns what functions of the route get instead of one of them, if it differs in
    type or value: FastAPI converts by the annotations of functions. `request` is the framework's
    own object. `read_body` returns the whole body, or raises InvalidRequestError if it is too long.
    """

    method: str
    target: str
    headers: Sequence[tuple[str, str]] = field(repr=False)
    parameters: Mapping[str, object] = field(default_factory=dict)
    read_body: Callable[[], bytes] = field(default=_no_body, repr=False)
    request: object = field(default=None, repr=False)
    converted: Callable[[], Mapping[str, Sequence[object]]] = field(
        default=_none_converted, repr=False
    )

    def lines(self, name: str) -> list[str]:
        """The values of all header lines of this name."""
        wanted = name.lower()
        return [value for each, value in self.headers if each.lower() == wanted]

    def member(self, name: str) -> object:
        """A member of the JSON body. Raises InvalidRequestError if it is missing."""
        body = self.json()
        if name not in body:
            raise InvalidRequestError(f"{name}: is missing in the body.")
        return body[name]

    def query_value(self, name: str) -> str:
        """The one value of a query parameter. Raises InvalidRequestError for none or several.

        Readers differ on which of two values counts.
        """
        query = self.target.partition("?")[2]
        values = [value for each, value in parse_qsl(query, keep_blank_values=True) if each == name]
        if len(values) != 1:
            raise InvalidRequestError(f"{name}: must be in the query exactly once.")
        return values[0]

    def json(self) -> dict[str, object]:
        """The body, a JSON object read strictly. Raises InvalidRequestError.

        It must be declared as JSON: a framework could read the same bytes as a form, and act on
        other values than those that were checked.
        """
        kinds = [_media_type(each) for each in self.lines("Content-Type")]
        if kinds != ["application/json"]:
            raise InvalidRequestError("Send the body with Content-Type: application/json.")
        if [each for each in self.lines("Content-Encoding") if each.strip().lower() != "identity"]:
            raise InvalidRequestError("Send the body without Content-Encoding.")
        try:
            return read_object(bounded(self.read_body()))
        except EncodingError as error:
            raise InvalidRequestError(f"The body cannot be read: {error.description}") from error


def question(incoming: Incoming, audience: str) -> dict[str, Any]:
    """The arguments of `VerifierClient.verify` for this request, all but the action.

    Raises AgentAuthError if there is no question to ask: InvalidTokenError, InvalidProofError or
    InvalidRequestError. Nothing of the body is read, so that a caller without credentials learns
    nothing about how to write it.
    """
    if any("websocket" in each.lower() for each in incoming.lines("Upgrade")):
        raise InvalidRequestError(WEBSOCKET)
    return {
        "token": authorization_header(incoming.lines("Authorization")),
        "proof": single_header(incoming.lines("DPoP")),
        "method": incoming.method,
        "url": request_url(audience, incoming.target),
        "idempotency_key": _idempotency_key(incoming.lines("Idempotency-Key")),
    }


def request_url(audience: str, target: str) -> str:
    """The request's URL as the agent signed it: origin of `audience`, path as received.

    Raises InvalidRequestError for a target that is no path.
    """
    path = target.split("?", 1)[0]
    # RFC 9112 has no fragment in a target, and servers differ on whether it belongs to the path.
    if not path.startswith("/") or "#" in target:
        raise InvalidRequestError("The request's target must be a path without a fragment.")
    origin = urlsplit(audience)
    return f"{origin.scheme}://{origin.netloc}{path}"


def encoded_path(path: str) -> str:
    """A decoded path as a target, for servers that do not pass the target on as received.

    A signed `%2F` is then refused, not confused with `/`.
    """
    return quote(path, safe="/~:@!$&'()*+,;=")


def received_target(environ: Mapping[str, Any]) -> str | None:
    """The target of a WSGI request before decoding; None if the server does not pass it on.

    WSGI decodes `%2F` to `/`, so two URLs would look like one. Servers pass the target as RAW_URI
    (gunicorn, Werkzeug) or REQUEST_URI (mod_wsgi, uWSGI), names that no client header can set.
    """
    return environ.get("RAW_URI") or environ.get("REQUEST_URI")


def wsgi_target(environ: Mapping[str, Any]) -> str:
    """`received_target`, or else the decoded path encoded again."""
    if received := received_target(environ):
        return received
    path = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
    query = environ.get("QUERY_STRING", "")
    # WSGI carries the bytes of the path as Latin-1.
    decoded = path.encode("latin-1", "replace").decode("utf-8", "replace")
    return encoded_path(decoded) + (f"?{query}" if query else "")


def wsgi_headers(environ: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The headers of a WSGI request. Servers join repeated lines with a comma."""
    lines = [
        (name[5:].replace("_", "-"), str(value))
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    named = {"Content-Type": "CONTENT_TYPE", "Content-Length": "CONTENT_LENGTH"}
    return lines + [(name, str(environ[key])) for name, key in named.items() if environ.get(key)]


def check_mount(environ: Mapping[str, Any], configured: str) -> None:
    """Raises InvalidRequestError if a header of the request moves the path of a WSGI application.

    gunicorn takes SCRIPT_NAME from a header of that name if the peer may be a proxy, by default any
    on loopback, and cuts it off the path: the route would be another than the URL signed. Only the
    prefix that is `configured` in the application may come that way.
    """
    if environ.get("HTTP_SCRIPT_NAME", configured) != configured:
        raise InvalidRequestError("Send the request without the header SCRIPT_NAME.")


def asgi_target(scope: Mapping[str, Any]) -> str:
    """The target of an ASGI request before decoding, or else the decoded path encoded again."""
    raw = scope.get("raw_path")
    path = raw.decode("latin-1") if raw else encoded_path(scope["path"])
    query = scope.get("query_string", b"").decode("latin-1")
    # Some servers leave the query in the raw path.
    return f"{path}?{query}" if query and "?" not in path else path


def asgi_headers(scope: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The header lines of an ASGI request, each as it was received."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]


def check_length(lines: Sequence[str]) -> None:
    """Raises InvalidRequestError if `Content-Length` announces a body too long to be read here."""
    for each in lines:
        digits = each.strip().lstrip("0")
        is_number = digits.isascii() and digits.isdigit()
        if is_number and (len(digits) > _LENGTH_DIGITS or int(digits) > MAX_BODY_BYTES):
            raise too_long()


def bounded(body: bytes) -> bytes:
    """`body`. Raises InvalidRequestError if it is longer than 65,536 bytes."""
    if len(body) > MAX_BODY_BYTES:
        raise too_long()
    return body


def too_long() -> InvalidRequestError:
    """The refusal of a body that is too long to be read here."""
    return InvalidRequestError(
        f"The body of this request must be at most {MAX_BODY_BYTES:,} bytes."
    )


def _media_type(value: str) -> str:
    """The media type of a header line; the value itself if its charset is not UTF-8."""
    kind, _, parameters = value.partition(";")
    plain = parameters.replace(" ", "").replace('"', "").lower() in {"", "charset=utf-8"}
    return kind.strip().lower() if plain else value


def _idempotency_key(lines: Sequence[str]) -> str | None:
    if not lines:
        return None
    value = lines[0]
    # A comma means two header lines that the server joined: it is unclear which names the
    # operation.
    plain = len(lines) == 1 and "," not in value and value.isascii()
    if not plain or not 1 <= len(value) <= MAX_IDEMPOTENCY_KEY:
        raise InvalidRequestError(
            "Idempotency-Key must be one header of 1 to 128 plain characters."
        )
    return value
