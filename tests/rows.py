"""Rows of the test's database: to compare them before and after, and to share them among tests."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

from django.apps import apps
from django.db import connection, transaction
from django.db.models import Model
from pytest_django.plugin import DjangoDbBlocker

from approvals.models import Passkey

# The log grows with every refusal; these are what an act changes.
_APPS = ("registry", "approvals", "verifier", "kms")
# Rows a request leaves by being made, not by what it does.
_TRACES = {"approvals.challenge", "registry.spentproof", "registry.idempotencyrecord"}


def rows() -> dict[str, list[str]]:
    """Every row of ours, except the traces and those of the log."""
    models = [model for label in _APPS for model in apps.get_app_config(label).get_models()]
    return read({model: _kept(model) for model in models if model._meta.label_lower not in _TRACES})


def _kept(model: type[Model]) -> list[str]:
    """Its columns, except those in which a passkey counts its signatures."""
    moving = {"sign_count", "last_used_at"} if model is Passkey else set()
    return [field.attname for field in model._meta.concrete_fields if field.attname not in moving]


def read(columns: Mapping[type[Model], Sequence[str]]) -> dict[str, list[str]]:
    """The rows of these tables, by the table's label; no columns are all columns."""
    found = {}
    with connection.cursor() as cursor:
        for model, names in columns.items():
            cursor.execute(_select(model, *names))
            found[model._meta.label_lower] = sorted(map(str, cursor.fetchall()))
    return found


# Compiled once: the sweeps read all rows thousands of times.
@cache
def _select(model: type[Model], *names: str) -> str:
    return str(model._base_manager.order_by().values_list(*names).query)


@contextmanager
def rows_of_a_module(blocker: DjangoDbBlocker) -> Iterator[None]:
    """Rows that all tests of a module begin with: the transaction of each test is nested in this
    one, and rolls back to it.
    """
    with blocker.unblock(), transaction.atomic():
        yield
        transaction.set_rollback(True)
