"""The language of pages, of texts that are signed, and of what is sent."""

from datetime import UTC, datetime, timedelta

import pytest
from django.conf import settings
from django.template import Context, Template
from django.utils import timezone, translation
from django.utils.formats import localize

from agentauth.protocol.catalogue import CatalogueRef, parse_catalogue
from agentauth.protocol.encoding import b64u_decode
from agentauth.protocol.money import Money
from approvals import sentences
from approvals.catalogue_consent_texts import catalogue_text
from approvals.models import Challenge, Notification, Receipt
from approvals.notifications import mail, webhooks
from approvals.quotation_marks import QUOTED, quoted
from approvals.services.recovery_alert_mail import notice_text
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.services.term_field_parsing import read_money
from approvals.templatetags.display_filters import set_apart, when
from approvals.tests.cast import ORIGIN, Person, browser
from approvals.tests.notifying import by_mail, by_webhook
from approvals.tests.recovering import begun
from audit import kinds
from audit.models import Event
from registry.models import Grant, Human
from registry.services.catalogues import Published
from registry.services.humans import delete_human
from registry.tests.cast import TESTER, assert_refused
from registry.tests.describing import WORDS

pytestmark = pytest.mark.django_db
COOKIE = settings.LANGUAGE_COOKIE_NAME
NBSP = "\u00a0"


def choose(person: Person, language: str) -> None:
    assert person.client.post("/language", {"language": language}).status_code == 302


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("fr,de;q=0.5,en;q=0.1", "de"),
        ("en-US,en;q=0.9,de;q=0.8", "en-gb"),
        ("fr", "en-gb"),
        ("", "en-gb"),
        ("xx-!!,;;q=,", "en-gb"),
    ],
)
def test_a_visitor_reads_the_language_of_their_browser(asked: str, shown: str) -> None:
    page = browser(**{"Accept-Language": asked}).get("/sign-in/").content.decode()
    assert f'<html lang="{shown}">' in page
    assert ("Mit Passkey anmelden" in page) == (shown == "de")


def test_a_visitor_can_choose_the_language_signed_out() -> None:
    visitor = browser(**{"Accept-Language": "de"})
    answer = visitor.post("/language?next=/sign-in/", {"language": "en-gb"})
    assert (answer.status_code, answer["Location"]) == (302, "/sign-in/")
    assert answer.cookies[COOKIE]["httponly"]
    assert "Sign in with passkey" in visitor.get("/sign-in/").content.decode()


def test_the_choice_of_language_leads_to_no_other_site() -> None:
    answer = browser().post("/language?next=https://evil.example/", {"language": "de"})
    assert answer["Location"] == "/approvals/"


@pytest.mark.parametrize("language", ["fr", "", "de-DE", "../de", "de\x00"])
def test_a_language_that_is_not_offered_is_refused(alice: Person, language: str) -> None:
    assert_refused(alice.client.post("/language", {"language": language}), 400, "invalid_request")
    assert alice.human.language == "en-gb"


def test_reading_a_page_chooses_no_language(alice: Person) -> None:
    assert alice.client.get("/language?language=de").status_code == 405


def test_the_account_decides_over_browser_and_cookie(alice: Person) -> None:
    choose(alice, "de")
    assert alice.human.language == "de"
    assert Event.objects.get(kind=kinds.HUMAN_CHANGED).data == {"language": "de"}
    alice.client.cookies[COOKIE] = "en-gb"
    page = alice.client.get("/settings/", headers={"Accept-Language": "en"}).content.decode()
    assert '<html lang="de">' in page
    assert '<option value="de" lang="de" selected>' in page


def test_setup_keeps_language_and_zone_of_the_browser(now: datetime) -> None:
    person = Person(client=browser(**{"Accept-Language": "de-CH"}))
    link = create_setup_link(email="eva@example.org", actor=TESTER, now=now)
    path = link.url.removeprefix(ORIGIN)
    fields = {"name": "Eva", "time_zone": "Europe/Zurich"}
    options = person.post(f"{path}options", fields).json()["publicKey"]
    credential = person.device.registration(options)
    assert person.post(f"{path}finish", {"credential": credential}).status_code == 200
    assert (person.human.time_zone, person.human.language) == ("Europe/Zurich", "de")


@pytest.mark.parametrize("zone", ["Mars/Base", "../../etc/passwd", "europe/berlin", ""])
def test_a_zone_that_the_database_lacks_becomes_utc(now: datetime, zone: str) -> None:
    person = Person()
    link = create_setup_link(email="eva@example.org", actor=TESTER, now=now)
    path = link.url.removeprefix(ORIGIN)
    options = person.post(f"{path}options", {"name": "Eva", "time_zone": zone})
    credential = person.device.registration(options.json()["publicKey"])
    assert person.post(f"{path}finish", {"credential": credential}).status_code == 200
    assert person.human.time_zone == "UTC"


def test_a_setup_that_the_previous_release_began_is_finished(now: datetime) -> None:
    person = Person()
    link = create_setup_link(email="eva@example.org", actor=TESTER, now=now)
    path = link.url.removeprefix(ORIGIN)
    options = person.post(f"{path}options", {"name": "Eva"}).json()["publicKey"]
    row = Challenge.objects.get()
    row.data = {name: row.data[name] for name in ("name", "email", "user_handle")}
    row.save()
    credential = person.device.registration(options)
    assert person.post(f"{path}finish", {"credential": credential}).status_code == 200
    assert (person.human.time_zone, person.human.language) == ("UTC", None)


def test_a_receipt_has_the_language_in_which_it_was_signed(alice: Person, paying: Grant) -> None:
    choose(alice, "de")
    assert "Mit Passkey genehmigen" in alice.get(f"/approvals/{paying.pk}/").content.decode()
    assert alice.approve(paying).json()["status"] == "Genehmigt"
    row = Receipt.objects.get()
    assert (
        Challenge.objects.get(used_at__isnull=False, purpose="approval").statement["language"]
        == "de"
    )
    assert f"Der Agent darf bis zu 100,00{NBSP}€ pro Zahlung bei „Acme Payments“" in (
        row.consent_text
    )
    assert b64u_decode(row.compact.split(".")[1])
    choose(alice, "en-gb")
    page = alice.get(f"/approvals/{paying.pk}/receipt/").content.decode()
    assert "The text you signed" in page
    assert "Der Agent darf" in page


def test_a_page_in_another_language_is_not_signed(alice: Person, reading: Grant) -> None:
    drawn = alice.drawn(reading)
    choose(alice, "de")
    for act in ("review", "statement"):
        refused = alice.ask(reading, act, drawn=drawn, decision="approve")
        assert_refused(refused, 409, "grant_changed")
        assert refused.json()["changes"] == [
            "Sie haben eine andere Sprache gewählt, seit diese Seite angezeigt wurde."
        ]
    reading.refresh_from_db()
    assert reading.status == "pending"
    assert alice.approve(reading).status_code == 200


def test_a_language_changed_while_signing_signs_nothing(alice: Person, reading: Grant) -> None:
    options = alice.statement(reading).json()["publicKey"]
    choose(alice, "de")
    assert_refused(alice.decide(reading, options), 409, "grant_changed")
    assert not Receipt.objects.exists()


def test_pages_say_refusals_in_their_language_and_the_api_in_english(
    alice: Person, paying: Grant
) -> None:
    choose(alice, "de")
    page = alice.client.get("/approvals/nothing", headers={"Accept": "text/html"})
    assert "Hier ist nichts, oder es gehört Ihnen nicht." in page.content.decode()
    choices = {"permission.1": "on", "amount.1": "viel"}
    refused = alice.ask(paying, "review", choices=choices).json()
    assert refused["error_description"] == "Geben Sie einen Betrag ein, etwa 40,00."
    answer = alice.client.get("/v1/grants/nothing", headers={"Accept-Language": "de"})
    assert "nicht" not in answer.content.decode()


def test_the_activity_says_in_words_why_a_request_was_refused(alice: Person) -> None:
    sent = {"from": "2126-07-02T09:00", "until": "2126-07-01T09:00"}
    assert alice.client.post("/settings/absences", sent).status_code == 400
    page = alice.get("/activity/").content.decode()
    assert ">A request was refused</a>" in page
    assert "· the input was not accepted" in page
    # The sentence says it: no badge says it again.
    assert '"state state-denied"' not in page
    choose(alice, "de")
    assert "· die Eingabe wurde nicht akzeptiert" in alice.get("/activity/").content.decode()


def test_the_control_room_names_its_lists_in_german(admin: Person) -> None:
    choose(admin, "de")
    page = admin.get("/admin/").content.decode()
    for english, german in (
        ("Grants", "Genehmigungen"),
        ("Humans", "Personen"),
        ("Service providers", "Dienste"),
        ("Catalogue versions", "Katalogversionen"),
        ("Keys", "Schlüssel"),
    ):
        assert f">{german}</a>" in page
        assert f">{english}</a>" not in page
    assert 'status__exact=unclaimed">Nicht übernommen</a>' in page
    assert 'purpose__exact=receipt">Beleg</a>' in page
    assert "Dienste" in admin.get("/admin/registry/serviceprovider/").content.decode()


def test_lists_of_the_control_room_count_24_hours() -> None:
    for language, shown in (("en-gb", "1 Dec 2026, 14:37"), ("de", "1. Dezember 2026 14:37")):
        with translation.override(language):
            assert localize(datetime(2026, 12, 1, 14, 37, tzinfo=UTC)) == shown


def test_a_streamed_file_is_in_the_language_of_the_page(alice: Person) -> None:
    choose(alice, "de")
    answer = alice.get("/activity/export.csv")
    text = b"".join(answer.streaming_content).decode()
    assert "Einstellungen wurden geändert" in text
    assert translation.get_language() == settings.LANGUAGE_CODE


def test_mail_and_webhook_are_in_the_language_of_their_person(
    alice: Person, reading: Grant, now: datetime
) -> None:
    Human.objects.update(language="de")
    row = Notification(what="request", subject=reading.pk, created_at=now)
    row.channel = by_mail(alice.human, now)
    assert mail.compose(row).subject == "AgentAuth: Eine Anfrage wartet auf Ihre Entscheidung"
    row.channel, _key = by_webhook(alice.human, now, "https://hooks.example.org/in")
    sent = webhooks.compose(row, now=now).body.decode()
    assert "Eine Anfrage wartet auf Ihre Entscheidung." in sent
    subject, body = notice_text(begun(alice.human, now))
    assert subject == "Wiederherstellung Ihres AgentAuth-Kontos"
    assert "brechen Sie die Wiederherstellung hier ab" in body


def test_a_deleted_human_has_no_language_left(alice: Person, now: datetime) -> None:
    human = alice.human
    delete_human(human=human, actor=TESTER, now=now, even_last_owner=True)
    assert human.language is None


def test_numbers_money_and_dates_are_written_as_their_language_does() -> None:
    at = datetime(2026, 12, 25, 8, 0, tzinfo=UTC)
    amount, yen = Money(100_000, "EUR"), Money(5_000, "JPY")
    with translation.override("de"):
        assert sentences.money(amount) == f"1.000,00{NBSP}€"
        assert sentences.money(yen) == f"5.000{NBSP}¥"
        assert sentences.money(Money(500, "CHF")) == f"5,00{NBSP}CHF"
        assert sentences.whole(1_048_576) == "1.048.576"
        assert sentences.moment(at, "Europe/Berlin") == (
            "25. Dezember 2026, 09:00 Uhr (Europe/Berlin)"
        )
    assert sentences.money(amount) == "€1,000.00"
    assert sentences.moment(at, "Europe/Berlin") == "25 December 2026, 09:00 (Europe/Berlin)"


@pytest.mark.parametrize("currency", ["EUR", "JPY", "KWD"])
@pytest.mark.parametrize("language", ["en-gb", "de"])
def test_an_amount_in_a_field_is_read_as_it_is_shown(language: str, currency: str) -> None:
    with translation.override(language):
        for minor in (1, 50, 123_456, 1_000_000):
            amount = Money(minor, currency)
            assert read_money(sentences.typed_amount(amount), currency) == amount
        assert sentences.typed_amount(Money(250_000, "EUR")) == (
            "2500,00" if language == "de" else "2500.00"
        )


@pytest.mark.parametrize(
    ("minutes", "english", "german"),
    [
        (-1, f"1{NBSP}minute ago", f"vor 1{NBSP}Minute"),
        (-60 * 24 * 3, f"3{NBSP}days ago", f"vor 3{NBSP}Tagen"),
        (60 * 24 * 62, f"in 2{NBSP}months", f"in 2{NBSP}Monaten"),
        (0, "just now", "gerade eben"),
    ],
)
def test_relative_times_read_right_and_carry_the_exact_one(
    minutes: int, english: str, german: str
) -> None:
    at = timezone.now() + timedelta(minutes=minutes, seconds=5 if minutes > 0 else -5)
    for language, said in (("en-gb", english), ("de", german)):
        with translation.override(language):
            shown = when(at)
            assert f">{said}</time>" in shown
            assert "(UTC)" in shown


def test_both_hours_at_the_end_of_summer_time_are_told_apart() -> None:
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    hour = timedelta(hours=1)
    told = [sentences.moment(first + n * hour, "Europe/Berlin") for n in (-1, 0, 1, 2)]
    assert told == [
        "25 October 2026, 01:30 (Europe/Berlin)",
        "25 October 2026, 02:30 (Europe/Berlin, UTC+02:00)",
        "25 October 2026, 02:30 (Europe/Berlin, UTC+01:00)",
        "25 October 2026, 03:30 (Europe/Berlin)",
    ]


def test_the_hour_that_summer_time_skips_is_never_shown() -> None:
    first = datetime(2026, 3, 29, 0, 59, tzinfo=UTC)
    told = [sentences.moment(first + timedelta(minutes=n), "Europe/Berlin") for n in (0, 1)]
    assert told == ["29 March 2026, 01:59 (Europe/Berlin)", "29 March 2026, 03:00 (Europe/Berlin)"]


@pytest.mark.parametrize("language", ["en-gb", "de"])
@pytest.mark.parametrize("name", ["Bot", "a“ und „b", "x” or “y", 'q"q', "«a»"])
def test_no_name_closes_the_quotation_marks_around_it(language: str, name: str) -> None:
    with translation.override(language):
        said = quoted(name)
        assert QUOTED.fullmatch(said)
        assert len(QUOTED.findall(f"{said} + {said}")) == 2
        assert set_apart(f"Agent {said}.").count('<span class="name">') == 1


def test_what_a_service_says_is_signed_in_german_marks() -> None:
    new = Published(CatalogueRef(1, "0" * 64), parse_catalogue(WORDS))
    with translation.override("de"):
        text = catalogue_text(
            service_provider="Acme", audience="https://acme.example", new=new, replaces=None
        )
    assert "write:files heißt „Save a file“: „Saves a file in {resource}.“" in text
    assert "Risiko: mindestens hoch." in text


def test_templates_write_the_zone_with_each_time() -> None:
    at = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
    shown = Template("{% load display_filters %}{{ at|exact }}").render(Context({"at": at}))
    assert shown == "1 July 2026, 12:00 (UTC)"
