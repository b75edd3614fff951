"""Names of rows, columns and choices in the control room, translated as they are shown."""

from collections.abc import Iterator
from typing import Any

from django.db.models import Field, Model
from django.utils.translation import gettext_lazy


def _fields(model: type[Model]) -> "Iterator[Field[Any, Any]]":
    yield from (each for each in model._meta.get_fields() if isinstance(each, Field))  # noqa: SLF001 — public by its docs


def names_of(model: type[Model]) -> set[str]:
    """The English names of the model, its columns and their choices."""
    meta = model._meta  # noqa: SLF001 — public by its docs
    found = {str(meta.verbose_name), str(meta.verbose_name_plural)}
    for field in _fields(model):
        found.add(str(field.verbose_name))
        found |= {str(label) for _value, label in field.flatchoices}
    return found


def _lazy(name: Any) -> Any:
    """The name, translated when it is shown; a name that is lazy already is returned as it is."""
    return gettext_lazy(name) if isinstance(name, str) else name


def translate_names(model: type[Model]) -> None:
    """Translate the names when they are shown; migrations still see the English ones."""
    meta = model._meta  # noqa: SLF001 — public by its docs
    # Django adds an "s" to the English name, lazily, where no Meta names the plural: `_lazy` would
    # leave that in English.
    meta.verbose_name_plural = gettext_lazy(str(meta.verbose_name_plural))
    meta.verbose_name = _lazy(meta.verbose_name)
    for field in _fields(model):
        field.verbose_name = _lazy(field.verbose_name)
        if field.choices:
            field.choices = [(value, _lazy(label)) for value, label in field.flatchoices]
