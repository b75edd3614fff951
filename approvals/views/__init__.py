"""The pages for people, one module per place. A view parses, calls one service and renders."""
