"""Catalogues over HTTP and in the registry: proposed, approved, refused, read (section 3)."""

import json
from copy import deepcopy
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from agentauth.protocol.catalogue import catalogue_sha256, parse_catalogue
from agentauth.protocol.errors import InvalidRequestError, InvalidStateError, RateLimitedError
from audit.models import Event
from registry.models import CatalogueVersion, ServiceProvider
from registry.services.catalogues import (
    MAX_PROPOSED,
    approve_catalogue,
    published_catalogue,
    refuse_catalogue,
    resembled_names,
)
from registry.services.service_providers import create_service_provider, revoke_service_provider
from registry.tests.cast import TESTER, AgentClient, assert_refused, basic
from registry.tests.describing import WORDS, proposed, published

pytestmark = pytest.mark.django_db
States = CatalogueVersion.Status


@pytest.fixture
def registered(now: datetime) -> tuple[ServiceProvider, str]:
    return create_service_provider(
        name="Acme", audience="http://127.0.0.1:8001", actor=TESTER, now=now
    )


@pytest.fixture
def provider(registered: tuple[ServiceProvider, str]) -> ServiceProvider:
    return registered[0]


def post(registered: tuple[ServiceProvider, str], body: object, path: str = "") -> Any:
    headers = basic(*registered)
    return Client().post(
        f"/v1/catalogue{path}", json.dumps(body), content_type="application/json", headers=headers
    )


def worded(label: str) -> dict[str, Any]:
    """WORDS with another label."""
    words = deepcopy(WORDS)
    words["actions"]["read:calendar"]["label"] = label
    return words


def test_service_provider_proposes_and_reads_its_catalogue(
    registered: tuple[ServiceProvider, str], now: datetime
) -> None:
    answer = post(registered, {"catalogue": WORDS})
    assert answer.status_code == 201, answer.content
    digest = catalogue_sha256(parse_catalogue(WORDS).canonical())
    told = answer.json()
    assert (told["version"], told["sha256"], told["status"]) == (1, digest, "proposed")
    found = Client().get("/v1/catalogue", headers=basic(*registered)).json()
    assert found["approved"] is None
    assert found["proposed"]["catalogue"] == WORDS
    event = Event.objects.get(kind="registry.catalogue.proposed")
    assert event.data == {"version": 1, "sha256": digest}
    approve_catalogue(row=CatalogueVersion.objects.get(), actor=TESTER, now=now)
    found = Client().get("/v1/catalogue", headers=basic(*registered)).json()
    assert (found["approved"]["version"], found["proposed"]) == (1, None)


def test_same_catalogue_again_changes_nothing(registered: tuple[ServiceProvider, str]) -> None:
    post(registered, {"catalogue": WORDS})
    again = post(registered, {"catalogue": WORDS})
    assert (again.status_code, again.json()["version"]) == (200, 1)
    assert Event.objects.filter(kind="registry.catalogue.proposed").count() == 1


@pytest.mark.parametrize(
    "body",
    [{}, {"catalogue": []}, {"catalogue": WORDS, "more": 1}, {"catalogue": {"actions": {"x": {}}}}],
)
def test_bad_catalogue_is_refused_and_stores_nothing(
    registered: tuple[ServiceProvider, str], body: object
) -> None:
    assert_refused(post(registered, body), 400, "invalid_request")
    assert not CatalogueVersion.objects.exists()


def test_catalogue_takes_no_query(registered: tuple[ServiceProvider, str]) -> None:
    assert_refused(post(registered, {"catalogue": WORDS}, "?x=1"), 400, "invalid_request")


def test_only_a_service_provider_proposes(registered: tuple[ServiceProvider, str]) -> None:
    agent = AgentClient()
    body = json.dumps({"catalogue": WORDS}).encode()
    assert_refused(agent.call("POST", "/v1/catalogue", body), 401, "invalid_client")
    assert_refused(post((registered[0], "wrong"), {"catalogue": WORDS}), 401, "invalid_client")
    assert_refused(Client().post("/v1/catalogue"), 401, "invalid_client")
    assert_refused(Client().get("/v1/catalogue"), 401, "invalid_client")


@pytest.mark.parametrize("word", ["pаyments", "Gооgle", "ѕервис и sеrvice"])
def test_AP_21_a_word_of_two_alphabets_is_refused(
    registered: tuple[ServiceProvider, str], word: str
) -> None:
    told = assert_refused(post(registered, {"catalogue": worded(word)}), 400, "invalid_request")
    assert "alphabets" in told["error_description"]


@pytest.mark.parametrize("words", ["PDF файл", "Сохранить PDF-файл", "予定を見る", "Καλημέρα"])
def test_words_of_two_alphabets_side_by_side_are_accepted(
    provider: ServiceProvider, now: datetime, words: str
) -> None:
    assert proposed(provider, now, worded(words)).status == States.PROPOSED


def test_AP_21_a_text_that_looks_like_another_name_is_pointed_out(
    provider: ServiceProvider, now: datetime
) -> None:
    create_service_provider(name="Bank", audience="http://127.0.0.1:8002", actor=TESTER, now=now)
    for label, name in (
        ("AgentAuth", "AgentAuth"),
        ("Checked by Agent Auth, free", "AgentAuth"),
        ("The Bank own transfer", "Bank"),
    ):
        found = list(resembled_names(parse_catalogue(worded(label)), provider))
        assert found == [("read:calendar.label", name)]
    assert not list(resembled_names(parse_catalogue(WORDS), provider))


def test_new_proposal_takes_the_place_of_the_one_that_waits(
    provider: ServiceProvider, now: datetime
) -> None:
    first, second = proposed(provider, now), proposed(provider, now, worded("Other"))
    first.refresh_from_db()
    assert (first.status, second.status, second.version) == (States.WITHDRAWN, States.PROPOSED, 2)
    with pytest.raises(InvalidStateError):
        approve_catalogue(row=first, actor=TESTER, now=now)


def test_catalogue_counts_once_approved_until_the_next_one_is(
    provider: ServiceProvider, now: datetime
) -> None:
    proposed(provider, now)
    assert published_catalogue(provider) is None
    first = published(provider, now)
    second = proposed(provider, now, worded("Other"))
    found = published_catalogue(provider)
    assert found is not None
    assert found.ref.version == first.version
    approve_catalogue(row=second, actor=TESTER, now=now)
    found = published_catalogue(provider)
    assert found is not None
    assert found.catalogue == parse_catalogue(worded("Other"))
    first.refresh_from_db()
    assert (first.status, first.seal) == (States.REPLACED, None)


def test_refused_catalogue_leaves_the_approved_one(
    provider: ServiceProvider, now: datetime
) -> None:
    published(provider, now)
    row = proposed(provider, now, worded("Other"))
    refuse_catalogue(row=row, actor=TESTER, now=now)
    found = published_catalogue(provider)
    assert found is not None
    assert found.ref.version == 1
    for decide in (refuse_catalogue, approve_catalogue):
        with pytest.raises(InvalidStateError):
            decide(row=row, actor=TESTER, now=now)


def test_catalogue_of_a_revoked_provider_is_not_decided(
    provider: ServiceProvider, now: datetime
) -> None:
    row = proposed(provider, now)
    revoke_service_provider(service_provider=provider, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        approve_catalogue(row=row, actor=TESTER, now=now)


def test_proposals_of_a_day_are_limited(provider: ServiceProvider, now: datetime) -> None:
    for number in range(MAX_PROPOSED):
        proposed(provider, now, worded(f"Words {number}"))
    with pytest.raises(RateLimitedError) as caught:
        proposed(provider, now, worded("One more"))
    assert caught.value.fields["retry_after"] == 86_401
    proposed(provider, now + timedelta(days=1), worded("One more"))


def test_old_proposals_are_forgotten_and_numbers_never_reused(
    provider: ServiceProvider, now: datetime
) -> None:
    published(provider, now)
    refuse_catalogue(row=proposed(provider, now, worded("A")), actor=TESTER, now=now)
    later = proposed(provider, now + timedelta(days=31), worded("B"))
    assert later.version == 3
    assert set(CatalogueVersion.objects.values_list("version", flat=True)) == {1, 3}


def test_DJ_17_words_written_since_they_were_read_are_not_sealed(
    provider: ServiceProvider, now: datetime
) -> None:
    row = proposed(provider, now)
    other = parse_catalogue(worded("Free of charge")).canonical().decode()
    CatalogueVersion.objects.filter(pk=row.pk).update(document=other)
    with pytest.raises(InvalidStateError):
        approve_catalogue(row=row, actor=TESTER, now=now)
    assert published_catalogue(provider) is None


def test_DJ_17_a_document_changed_in_its_row_is_not_read(
    provider: ServiceProvider, now: datetime
) -> None:
    row = published(provider, now)
    other = parse_catalogue(worded("Free of charge")).canonical().decode()
    CatalogueVersion.objects.filter(pk=row.pk).update(document=other)
    assert published_catalogue(provider) is None


def test_document_that_this_version_cannot_read_counts_as_none(
    registered: tuple[ServiceProvider, str], now: datetime
) -> None:
    """But its service provider can read it back."""
    row = published(registered[0], now)
    # A label that another release may have accepted.
    row.document = '{"actions":{"read:calendar":{"label":"Read\\u202e","sentence":"Reads"}}}'
    row.set_seal()
    row.save(update_fields=["document", "seal"])
    assert published_catalogue(registered[0]) is None
    answer = Client().get("/v1/catalogue", headers=basic(*registered))
    assert answer.status_code == 200, answer.content
    assert answer.json()["approved"]["catalogue"] == json.loads(row.document)


def test_command_creates_a_provider_with_its_words(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text(json.dumps(WORDS))
    arguments = ["--audience", "http://127.0.0.1:8009", "--operator", "alice"]
    call_command(
        "create_service_provider", "New", *arguments, "--catalogue", str(file), stdout=StringIO()
    )
    row = CatalogueVersion.objects.get()
    assert (row.service_provider.name, row.status) == ("New", States.PROPOSED)


@pytest.mark.parametrize("content", ["{", '{"actions": 1}', None])
def test_command_with_a_bad_catalogue_creates_nothing(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "words.json"
    if content is not None:
        file.write_text(content)
    arguments = ["--audience", "http://127.0.0.1:8009", "--operator", "alice"]
    with pytest.raises((CommandError, InvalidRequestError)):
        call_command("create_service_provider", "New", *arguments, "--catalogue", str(file))
    assert not ServiceProvider.objects.exists()
