"""Routes of the registry's API."""

from django.urls import path

from registry.api.agents import KeyView, ManifestView, OwnAgentView, RegisterView
from registry.api.catalogues import CatalogueView
from registry.api.discovery import AgentAuthDiscoveryView, AuthorizationServerView
from registry.api.grants import GrantsView, GrantView, RevokeGrantView, WithdrawGrantView
from registry.api.service_provider_lookup import ServiceProviderView
from registry.api.tokens import IssueTokenView, RevokeTokenView

urlpatterns = [
    path("v1/tokens", IssueTokenView.as_view()),
    path(".well-known/agentauth", AgentAuthDiscoveryView.as_view()),
    path(".well-known/oauth-authorization-server", AuthorizationServerView.as_view()),
    path("v1/agents", RegisterView.as_view()),
    path("v1/agents/me", OwnAgentView.as_view()),
    path("v1/agents/me/manifest", ManifestView.as_view()),
    path("v1/agents/me/key", KeyView.as_view()),
    path("v1/grants", GrantsView.as_view()),
    path("v1/grants/<str:grant_id>", GrantView.as_view()),
    path("v1/grants/<str:grant_id>/withdraw", WithdrawGrantView.as_view()),
    path("v1/grants/<str:grant_id>/revoke", RevokeGrantView.as_view()),
    path("v1/catalogue", CatalogueView.as_view()),
    path("v1/service-providers/<str:reference>", ServiceProviderView.as_view()),
    path("v1/revoke", RevokeTokenView.as_view()),
]
