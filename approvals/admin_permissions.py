"""What each list, action and page of the control room asks of an administrator's role (ADR 50).

A list, an action or a page that is not named here is for owners alone.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest, HttpResponse

from approvals.models import Notification, SetupCode
from approvals.views.request_helpers import human_of
from audit.models import Checkpoint, CheckpointCopy, Cosignature, Event, Segment
from kms.models import Key, KeyCertificate
from registry.models import Agent, CatalogueVersion, Grant, Human, ServiceProvider
from registry.roles import Permission
from registry.services.roles import check_permission

P = ParamSpec("P")
# The permission for reading a model's rows: their list, and the page of each.
READS: Final[Mapping[type[Model], Permission]] = dict.fromkeys(
    (Agent, Grant, ServiceProvider, CatalogueVersion), Permission.READ_REQUESTS
) | dict.fromkeys(
    (
        *(Human, SetupCode, Notification, Key, KeyCertificate),
        *(Event, Checkpoint, CheckpointCopy, Cosignature, Segment),
    ),
    Permission.READ_ALL,
)
# The permission for an action of a list.
ACTS: Final[Mapping[tuple[type[Model], str], Permission]] = {
    (Grant, "deny"): Permission.DECIDE,
    **dict.fromkeys(
        (
            *((model, "suspend") for model in (Agent, Grant, Human, ServiceProvider)),
            # Not a person: `permission_to_resume` says why.
            *((model, "resume") for model in (Agent, Grant, ServiceProvider)),
            *((Human, "end_sessions"), (Notification, "send_again"), (Key, "rotate")),
        ),
        Permission.OPERATE,
    ),
}


def may_read(request: HttpRequest, model: type[Model]) -> bool:
    """Whether this administrator reads the rows of the model."""
    return READS.get(model, Permission.OWN) in human_of(request).permissions


def require_permission(
    view: Callable[Concatenate[HttpRequest, P], HttpResponse],
    permission: Permission = Permission.OWN,
) -> Callable[Concatenate[HttpRequest, P], HttpResponse]:
    """A page of the control room for administrators with this permission."""

    @wraps(view)
    def wrapped(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        check_permission(human_of(request), permission)
        return view(request, *args, **kwargs)

    return wrapped


if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = object


class RolePages(_ModelAdmin):
    """For a ModelAdmin of the control room: its pages and actions, as far as a role may use them.

    Before the other bases, so that it checks first.
    """

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may_read(request, self.model)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return may_read(request, self.model)

    def get_actions(self, request: HttpRequest) -> Any:
        """The actions that the role may use: only these are offered, in lists and as buttons."""
        permissions = human_of(request).permissions
        return {
            name: action
            for name, action in super().get_actions(request).items()
            if self._permission_for(name) in permissions
        }

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> Any:
        """Check that the role reads the list, and uses the action that was posted."""
        self._check(request)
        if action := request.POST.get("action"):
            check_permission(human_of(request), self._permission_for(action))
        return super().changelist_view(request, extra_context)

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        self._check(request)
        return super().changeform_view(request, *args, **kwargs)

    def _check(self, request: HttpRequest) -> None:
        check_permission(human_of(request), READS.get(self.model, Permission.OWN))

    def _permission_for(self, action: str) -> Permission:
        return ACTS.get((self.model, action), Permission.OWN)
