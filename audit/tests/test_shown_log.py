"""All public endpoints of the log: strict queries, one response form, no credentials, no leaks."""

from base64 import b64encode, urlsafe_b64encode

import pytest
from django.test import Client

from audit.models import Checkpoint, Event, Leaf
from audit.tests.proving import JSON_ONLY, PATHS, assert_refused, event_of, get, good
from audit.tests.tampering import as_table_owner

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("signing")]


def asked(index: int = 0) -> dict[str, str]:
    """Each path with a valid query."""
    return {path: query.format(event_of(index)) for path, query in PATHS.items()}


WRONG = [
    ("checkpoint", "size=1"), ("checkpoint", "format=json"), ("tile/0/000", "x=1"),
        ("tile/entries/000", "x="),
    ("proof/inclusion", ""), ("proof/inclusion", "event="), ("proof/inclusion", "event=x"),
    ("proof/inclusion", "event={0}&event={0}"), ("proof/inclusion", "event={0}&x=1"),
    ("proof/inclusion", "event={0}&tree_size="), ("proof/inclusion", "event={0}&tree_size=0300"),
    ("proof/inclusion", "event={0}&tree_size=%2B300"), ("proof/inclusion",
        "event={0}&tree_size=-1"),
    ("proof/inclusion", "event={0}&tree_size=3e2"), ("proof/inclusion",
        "event={0}&tree_size=300.0"),
    ("proof/inclusion", "event={0}&tree_size=%D9%A3"), ("proof/inclusion",
        "event={0}&tree_size=9223372036854775808"),
    ("proof/inclusion", "event={0}&tree_size=" + "9" * 3000), ("proof/inclusion",
        "event={0}&tree_size=300&tree_size=300"),
    ("proof/inclusion", "event={0}&tree_size=300%0A"),
    ("proof/bundle", ""), ("proof/bundle", "event={0}&tree_size=300"), ("proof/bundle",
        "event={0}&event={0}"),
    ("proof/consistency", ""), ("proof/consistency", "first=1"), ("proof/consistency", "second=1"),
    ("proof/consistency", "first=1&second=02"), ("proof/consistency", "first=1&second=x"),
    ("proof/consistency", "first=1&second=2&second=2"), ("proof/consistency",
        "first=1&second=2&third=3"),
    ("proof/consistency", "first=&second=2"),
]  # fmt: skip


def test_a_query_outside_the_contract_is_refused(signed_log: Checkpoint) -> None:
    for path, query in WRONG:
        assert_refused(get(path, query.format(event_of(0))), 400, "invalid_request")


def test_an_id_in_another_spelling_is_refused(signed_log: Checkpoint) -> None:
    event = event_of(0)
    for text in (event.upper(), f"{{{event}}}", event.replace("-", ""), f"urn:uuid:{event}"):
        for path in ("proof/inclusion", "proof/bundle"):
            assert_refused(get(path, f"event={text}"), 400, "invalid_request")


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/plain", "application/octet-stream", "text/html"]
)
def test_non_json_log_pages_ignore_the_accept_header(signed_log: Checkpoint, accept: str) -> None:
    for path, query in asked().items():
        if path not in JSON_ONLY:
            assert get(path, query, Accept=accept).status_code == 200
            assert_refused(get(path, "unknown=1", Accept=accept), 400, "invalid_request")


def test_what_is_json_needs_a_client_that_takes_it(signed_log: Checkpoint) -> None:
    for path in JSON_ONLY:
        for accept in ("*/*", "application/json", "text/html, */*;q=0.1"):
            assert get(path, asked()[path], Accept=accept).status_code == 200
        assert_refused(get(path, asked()[path], Accept="text/plain"), 406, "not_acceptable")


def test_only_reading_is_taken_and_head_is_reading(signed_log: Checkpoint) -> None:
    for path, query in asked().items():
        address = f"/v1/audit/{path}?{query}"
        answer, head = good(path, query), Client().head(address)
        assert (head.status_code, head.content) == (200, b"")
        assert head["Content-Type"] == answer["Content-Type"]
        for method in ("post", "put", "patch", "delete", "options"):
            assert_refused(getattr(Client(), method)(address), 405, "method_not_allowed")


def test_log_pages_are_the_same_with_credentials(signed_log: Checkpoint) -> None:
    for path, query in asked().items():
        for headers in ({"Authorization": "Basic eDp5"}, {"DPoP": "x.y.z"}):
            assert get(path, query, **headers).content == good(path, query).content


def test_no_answer_holds_the_salt_or_anything_of_the_event(signed_log: Checkpoint) -> None:
    event = Event.objects.get(pk=event_of(0))
    assert event.openings.count() == 1
    salts = [bytes(event.salt), bytes(event.openings.get().salt)]
    hidden = [str(event.id).encode(), event.kind.encode(), b"Alice", *salts]
    hidden += [
        encode(salt).rstrip(b"=") for salt in salts for encode in (b64encode, urlsafe_b64encode)
    ]
    for path, query in asked().items():
        content = good(path, query).content
        assert not any(each in content for each in hidden), path


def test_a_tree_that_lost_what_was_signed_is_our_fault_and_proves_nothing(
    signed_log: Checkpoint,
) -> None:
    queries = asked(299)
    with as_table_owner():
        Leaf.objects.filter(leaf_index__lt=299).delete()
        for path, query in queries.items():
            answer = Client(raise_request_exception=False).get(f"/v1/audit/{path}?{query}")
            if path != "checkpoint":
                assert_refused(answer, 500, "server_error")
