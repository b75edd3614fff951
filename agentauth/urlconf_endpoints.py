"""The table of endpoints: every pattern of the URLconf, with its route, path and methods.

The API description, the filter for strangers and every test that visits each endpoint read it, so
that an endpoint added to the URLconf is in all of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from django.urls import URLPattern, URLResolver, get_resolver

_PARAMETER: Final = re.compile(r"<(?:[a-z]+:)?([a-z_]+)>")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One pattern of the URLconf; `route` is as Django writes it, with a slash before it."""

    route: str
    pattern: URLPattern

    @property
    def path(self) -> str:
        """The route as the API description writes it: `/v1/grants/{grant_id}`."""
        return _PARAMETER.sub(r"{\1}", self.route)

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the parameters in the route."""
        return frozenset(_PARAMETER.findall(self.route))

    @property
    def view(self) -> Any:
        """The class of an API view; None for a function, as of a page."""
        return getattr(self.pattern.callback, "cls", None)

    @property
    def methods(self) -> frozenset[str]:
        """The methods that an API view handles, without OPTIONS; none are known of a function."""
        names = getattr(self.view, "http_method_names", ())
        handled = {name.upper() for name in names if hasattr(self.view, name)}
        return frozenset(handled - {"OPTIONS"})


@lru_cache(maxsize=1)
def endpoints() -> tuple[Endpoint, ...]:
    """Every endpoint, in the order in which they are matched."""
    return tuple(_patterns(get_resolver(), "/"))


def _patterns(resolver: URLResolver, prefix: str) -> Iterator[Endpoint]:
    for entry in resolver.url_patterns:
        # The admin site writes some of its routes as regular expressions.
        route = prefix + str(entry.pattern).removeprefix("^").removesuffix("$")
        if isinstance(entry, URLPattern):
            yield Endpoint(route, entry)
        else:
            yield from _patterns(entry, route)
