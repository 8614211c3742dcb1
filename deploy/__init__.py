"""Wheelhouse to the same release on every node."""
