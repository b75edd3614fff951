"""The pages, one module per area. A view parses, calls one service and renders."""
