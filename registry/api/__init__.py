"""The registry's API: one view per act. A view parses, calls one service and renders."""
