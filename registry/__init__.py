"""Who exists and what they were granted."""
