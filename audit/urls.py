"""URLs of the audit app."""

from django.urls import path, register_converter

from audit.events_api import EventsView
from audit.public_log_api import (
    BundleView,
    CheckpointView,
    ConsistencyView,
    EntriesView,
    InclusionView,
    TileView,
)
from audit.tile_url_converters import LevelConverter, TileConverter

register_converter(LevelConverter, "level")
register_converter(TileConverter, "tile")

urlpatterns = [
    path("v1/audit/events", EventsView.as_view(), name="audit-events"),
    path("v1/audit/checkpoint", CheckpointView.as_view()),
    path("v1/audit/proof/inclusion", InclusionView.as_view()),
    path("v1/audit/proof/consistency", ConsistencyView.as_view()),
    path("v1/audit/proof/bundle", BundleView.as_view()),
    path("v1/audit/tile/entries/<tile:tile>", EntriesView.as_view()),
    path("v1/audit/tile/<level:level>/<tile:tile>", TileView.as_view()),
]
