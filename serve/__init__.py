"""Release and profile to a running service."""
