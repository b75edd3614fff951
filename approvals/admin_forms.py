"""The forms of the control room. The services create and change the rows."""

from django import forms
from django.utils.translation import gettext_lazy as _

from approvals.role_words import NO_ROLE, ROLES
from registry.models import Human, ServiceProvider


def _roles() -> list[tuple[str, str]]:
    """No role, and each role with what it does, in the reader's language."""
    named = {"": NO_ROLE} | {str(role): words for role, words in ROLES.items()}
    return [(name, f"{words.label}: {words.description}") for name, words in named.items()]


def _role_field() -> forms.ChoiceField:
    return forms.ChoiceField(
        label=_("Role"), choices=_roles, widget=forms.RadioSelect, required=False
    )


class InvitationForm(forms.Form):
    """The human to invite, and their role."""

    email = forms.EmailField(label=_("E-mail"))
    role = _role_field()


class RoleForm(forms.Form):
    """The role of a human."""

    role = _role_field()
    # The role when the form was opened, so that it does not undo another owner's change.
    shown_role = forms.CharField(widget=forms.HiddenInput, required=False)


class EnrolmentForm(forms.Form):
    """The human who gets an enrolment code."""

    human = forms.ModelChoiceField(
        Human.objects.filter(status=Human.Status.ACTIVE), label=_("Human")
    )


_ALLOWED = forms.CharField(
    label=_("What agents may ask for"),
    required=False,
    widget=forms.Textarea(attrs={"rows": 4}),
    help_text=_("One entry per line, such as read:calendar. Empty allows nothing."),
)
_AUDIENCE = forms.CharField(
    label=_("Audience URL"), max_length=255, help_text=_("https, without a final slash")
)


class ServiceProviderForm(forms.Form):
    """A new service provider."""

    name = forms.CharField(label=_("Name"), max_length=80)
    audience = _AUDIENCE
    allowed = _ALLOWED
    is_auditor = forms.BooleanField(label=_("May read the whole audit log"), required=False)
    require_nonce = forms.BooleanField(label=_("Proofs must carry a server nonce"), required=False)
    catalogue = forms.CharField(
        label=_("Its own words, as JSON (optional)"),
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 6, "spellcheck": "false"}),
        help_text=_("You read and approve them on the next page."),
    )


class CatalogueForm(forms.Form):
    """The words of a service, proposed for it."""

    service_provider = forms.ModelChoiceField(
        ServiceProvider.objects.exclude(status=ServiceProvider.Status.REVOKED),
        label=_("Service provider"),
    )
    catalogue = forms.CharField(
        label=_("Its own words, as JSON"),
        strip=False,
        widget=forms.Textarea(attrs={"rows": 16, "spellcheck": "false"}),
        help_text=_("An empty object, {}, removes all words."),
    )


class ServiceProviderChangeForm(forms.Form):
    """What can change of a service provider."""

    audience = _AUDIENCE
    allowed = _ALLOWED
    # The values when the form was opened, so that it does not undo another administrator's change.
    shown_audience = forms.CharField(widget=forms.HiddenInput)
    shown_allowed = forms.CharField(widget=forms.HiddenInput, required=False)


class ConfirmForm(forms.Form):
    """No fields: the act is confirmed with the passkey alone."""
