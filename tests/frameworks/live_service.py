"""What the live stories call: a shop that asks verify, and the person who decides.

It runs beside the registry; the stories run in the environments of their frameworks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, request

from agentauth.integrations.flask import Provider, protect, protected, requires, unprotected
from agentauth.integrations.tests.conformance import served_by_wsgi
from tests.live import LiveRegistry


def shop(provider: Provider, person: Callable[..., Any]) -> Flask:
    app, paid = Flask("shop"), []
    protect(app, provider)

    @app.post("/v1/payments")
    @protected(requires("transact", "payments", amount="amount", arguments=["payee"]))
    def pay() -> tuple[dict[str, Any], int]:
        paid.append(request.get_json())
        return {"paid": paid[-1]["amount"]}, 201

    @app.get("/paid")
    @unprotected
    def made() -> list[Any]:
        return paid

    @app.post("/person")
    @unprotected
    def decide() -> Any:
        return person(**request.get_json())

    return app


@contextmanager
def shop_at(registry: LiveRegistry) -> Iterator[dict[str, str]]:
    """The shop, as long as the block runs. What a story is told of it."""
    served: list[Flask] = []

    def application(environ: Any, start: Any) -> Any:
        # It is made once its address is known.
        [app] = served
        return app(environ, start)

    with registry.person() as person, served_by_wsgi(application) as url:
        made = registry.manage(
            "create_service_provider", "Shop", "--audience", url, "--allow", "transact:payments"
        )
        provider = Provider(registry.url, made["client_id"], made["client_secret"], url)
        served.append(shop(provider, person))
        yield {"registry": registry.url, "slug": made["slug"], "shop": url}
