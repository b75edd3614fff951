"""Humans, agents and service providers, and what they were granted."""
